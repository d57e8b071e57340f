"""Embeddings that look up points of a set."""

from torch import Tensor, nn
from torch.nn import functional as F

from nxmiformer.layers.compressed import Compressed, foreign_forward
from nxmiformer.layers.weights import WeightQuantizer
from nxmiformer.sets import ConstraintSet, Products


class CompressedEmbedding(Compressed, nn.Embedding):
    """An embedding whose rows pass through a fake quantizer when they are looked up: only those rows cost anything.

    Its set must treat rows alone, or be one of Kronecker products: of factors, too, only those rows are computed.
    """

    transposed = False

    @staticmethod
    def refuses(embedding: nn.Embedding, constraint: ConstraintSet) -> str | None:
        """Why the embedding cannot look up points of this set, or None where it can."""
        if not constraint.rowwise and not isinstance(constraint, Products):
            return f"its rows are looked up one by one, and {constraint} is no matter of single rows"
        if embedding.max_norm is not None:
            return "its max_norm changes the weight in the forward pass"
        return None

    def compute(self, ids: Tensor) -> Tensor:
        if self.quantizer.factors is not None:
            return self.quantizer.factors.look_up(ids)
        if not self.quantizer.constraint.rowwise:
            return F.embedding(ids, self.quantizer(self.weight), self.padding_idx)
        rows = nn.Embedding.forward(self, ids)
        return self.quantizer(rows.flatten(0, -2), ids.flatten()).view(rows.shape)


def shares(module: nn.Module) -> bool:
    """Whether a module that has the weight of a compressed layer can have whatever the layer has in place of it."""
    plain = isinstance(module, nn.Embedding) and not isinstance(module, Compressed)
    return isinstance(module, Compressed) or (plain and module.max_norm is None and foreign_forward(module) is None)


def sharing(module: nn.Module, constraint: ConstraintSet) -> Compressed:
    """A module that `shares`, compressed: an embedding may not be yet."""
    if isinstance(module, Compressed):
        return module
    return CompressedEmbedding.adopt(module, WeightQuantizer(constraint))
