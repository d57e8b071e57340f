"""The size of the compressed layers, and of the model around them."""

from dataclasses import dataclass

from nxmiformer.sets import Storage


@dataclass(frozen=True)
class PlanStorage:
    """Bits of the compressed layers, and of the whole model around them.

    Attributes:
        packed: values, indices and scales of all compressed weights, in bits.
        dense: the same weights in float32, in bits.
        rest: everything else in the model, float32, in bits.
    """

    packed: Storage
    dense: int
    rest: int

    @property
    def values(self) -> int:
        """Bits of the remaining values."""
        return self.packed.values

    @property
    def indices(self) -> int:
        """Bits of the positions of the remaining values."""
        return self.packed.indices

    @property
    def scales(self) -> int:
        """Bits of the scales."""
        return self.packed.scales

    @property
    def total(self) -> int:
        """All bits of the compressed weights."""
        return self.packed.total

    @property
    def compression(self) -> dict[str, float]:
        """1 - stored / dense float32 bits: by values alone, with indices, with scales too, and of the whole model."""
        return {
            "values": _saved(self.values, self.dense),
            "indices": _saved(self.values + self.indices, self.dense),
            "all": _saved(self.total, self.dense),
            "model": _saved(self.total + self.rest, self.dense + self.rest),
        }


def _saved(stored: int, dense: int) -> float:
    return 1 - stored / dense if dense else 0.0
