"""The budget of a search."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from nxmiformer.errors import unknown
from nxmiformer.plan.compression import FLOAT
from nxmiformer.sets import ConstraintSet
from nxmiformer.sets.base import Shape

Accounting = Literal["values", "indices", "all"]
NONE = "a search needs a budget: budget.ratio=..., budget.bytes=... or budget.whole_model_bytes=..."
ROUND = 10_000


@dataclass(frozen=True)
class Budget:
    """The limit of the searched layers together; one of the three is given.

    Attributes:
        ratio: limit as a share of their float32 size, in (0, 1].
        bytes: limit in bytes.
        whole_model_bytes: limit of the file of all weights in bytes, with the other layers and its header.
        accounting: what counts: the remaining values ("values"), also their positions ("indices"), or also the scales
            and the rounding up to bytes ("all"), as in the packed file. `whole_model_bytes` always counts all.
    """

    ratio: float | None = None
    bytes: int | None = None
    whole_model_bytes: int | None = None
    accounting: Accounting = "all"

    def __post_init__(self) -> None:
        if self.accounting not in get_args(Accounting):
            raise unknown("accounting of a budget", self.accounting, get_args(Accounting))
        given = {name: value for name, value in self._limits.items() if value is not None}
        if len(given) > 1:
            raise ValueError(f"a budget has one limit, not {' and '.join(f'budget.{n}={v}' for n, v in given.items())}")
        if not all(value > 0 for value in given.values()) or (self.ratio or 0) > 1:
            name, value = next(iter(given.items()))
            raise ValueError(f"budget.{name}={value}: it must be above 0" + (" and at most 1" if self.ratio else ""))
        if self.whole_model_bytes is not None and self.accounting != "all":
            raise ValueError(
                f"budget.whole_model_bytes counts all, so budget.accounting={self.accounting} has no effect"
            )

    @property
    def _limits(self) -> Mapping[str, float | None]:
        return {"ratio": self.ratio, "bytes": self.bytes, "whole_model_bytes": self.whole_model_bytes}

    @property
    def given(self) -> bool:
        """Whether there is a limit."""
        return any(value is not None for value in self._limits.values())

    def __str__(self) -> str:
        if self.whole_model_bytes is not None:
            return f"{self.whole_model_bytes} whole bytes"
        limit = "no limit" if self.ratio is None else f"{self.ratio:g}"
        limit = limit if self.bytes is None else f"{self.bytes} bytes"
        return limit if self.accounting == "all" else f"{limit} by {self.accounting}"

    def bits(self, weights: int, rest: int) -> int:
        """The limit in bits, for this many weights in the layers and bits around them.

        Raises:
            ValueError: no limit is given, or there is nothing left of it.
        """
        if self.whole_model_bytes is not None:
            left = self.whole_model_bytes * 8 - rest
            if left <= 0:
                raise ValueError(
                    f"budget.whole_model_bytes={self.whole_model_bytes}: the rest of the model alone takes "
                    f"{-(-rest // 8)} bytes"
                )
            return left
        if self.bytes is not None:
            return self.bytes * 8
        if self.ratio is None:
            raise ValueError(NONE)
        return int(self.ratio * weights * FLOAT)

    def smallest(self, bits: int, weights: int, rest: int) -> str:
        """The smallest limit of its kind, as it is given, that leaves so many bits; a ratio is rounded up."""
        if self.whole_model_bytes is not None:
            return f"budget.whole_model_bytes={-(-(bits + rest) // 8)}"
        if self.bytes is not None:
            return f"budget.bytes={-(-bits // 8)}"
        return f"budget.ratio={math.ceil(bits / (weights * FLOAT) * ROUND) / ROUND:g}"

    def cost(self, constraint: ConstraintSet | None, shape: Shape) -> int:
        """Bits that a layer of this shape counts for in the set; None is a dense layer, in float32."""
        if constraint is None:
            return shape[0] * shape[1] * FLOAT
        storage = constraint.storage(shape)
        return {
            "values": storage.values,
            "indices": storage.values + storage.indices,
            "all": storage.nbytes * 8,
        }[self.accounting]
