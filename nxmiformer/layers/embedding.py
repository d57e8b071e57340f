"""Embeddings that look up points of a set."""

from typing import Self

from torch import Tensor, nn

from nxmiformer.layers.quantizers import WeightQuantizer
from nxmiformer.sets import ConstraintSet


class CompressedEmbedding(nn.Embedding):
    """An embedding whose rows pass through a fake quantizer when they are looked up: only those rows cost anything.

    It adopts the parameter of the embedding it replaces, as `CompressedLinear` does. Its set must treat rows alone.
    """

    transposed = False
    inputs = None
    quantizer: WeightQuantizer

    @classmethod
    def adopt(cls, embedding: nn.Embedding, quantizer: WeightQuantizer) -> Self:
        """The compressed stand-in of `embedding`, which `refuses` must not refuse."""
        self = cls.__new__(cls)
        nn.Module.__init__(self)
        for name in ("num_embeddings", "embedding_dim", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq"):
            setattr(self, name, getattr(embedding, name))
        self.sparse, self.weight, self.quantizer = embedding.sparse, embedding.weight, quantizer
        return self.train(embedding.training)

    @staticmethod
    def refuses(embedding: nn.Embedding, constraint: ConstraintSet) -> str | None:
        """Why the embedding cannot look up points of this set, or None where it can."""
        if not constraint.rowwise:
            return f"its rows are looked up one by one, and {constraint} is no matter of single rows"
        if embedding.max_norm is not None:
            return "its max_norm changes the weight in the forward pass"
        return None

    @property
    def matrix(self) -> Tensor:
        """The weight, (num_embeddings, embedding_dim)."""
        return self.weight

    def forward(self, ids: Tensor) -> Tensor:
        rows = super().forward(ids)
        return self.quantizer(rows.flatten(0, -2), ids.flatten()).view(rows.shape)

    def release(self) -> nn.Embedding:
        """A plain embedding with the same parameter; what `adopt` was given, in effect."""
        plain = nn.Embedding(self.num_embeddings, self.embedding_dim, self.padding_idx, device="meta")
        plain.weight = self.weight
        return plain.train(self.training)
