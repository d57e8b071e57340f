"""Embeddings that look up points of a set."""

from typing import Self

from torch import Tensor, nn

from nxmiformer.layers.quantizers import WeightQuantizer


class CompressedEmbedding(nn.Embedding):
    """An embedding whose rows pass through a fake quantizer when they are looked up: only those rows cost anything.

    It adopts the parameter of the embedding it replaces, as `CompressedLinear` does. Its set must treat rows alone.
    """

    transposed = False
    inputs = None
    quantizer: WeightQuantizer

    @classmethod
    def adopt(cls, embedding: nn.Embedding, quantizer: WeightQuantizer) -> Self:
        """The compressed stand-in of `embedding`.

        Raises:
            ValueError: the set does not treat rows alone, or the embedding renormalises its rows when they are used.
        """
        if not quantizer.constraint.rowwise:
            raise ValueError(f"{quantizer.constraint} is no set for an embedding: its rows are looked up one by one")
        if embedding.max_norm is not None:
            raise ValueError(
                "an embedding with max_norm changes its weight in the forward pass, and cannot be converted"
            )
        self = cls.__new__(cls)
        nn.Module.__init__(self)
        for name in ("num_embeddings", "embedding_dim", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq"):
            setattr(self, name, getattr(embedding, name))
        self.sparse, self.weight, self.quantizer = embedding.sparse, embedding.weight, quantizer
        return self.train(embedding.training)

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
