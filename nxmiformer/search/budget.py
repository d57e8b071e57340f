"""The budget of a search."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from nxmiformer.errors import unknown
from nxmiformer.layers.targets import Target
from nxmiformer.plan.compression import FLOAT
from nxmiformer.search.costs import Costs
from nxmiformer.sets import ConstraintSet
from nxmiformer.sets.base import Shape

Accounting = Literal["values", "indices", "all"]
NONE = (
    "a search needs a budget: budget.ratio=..., budget.bytes=... or budget.whole_model_bytes=..., or of time "
    "budget.latency=... or budget.milliseconds=..."
)
ROUND = 10_000
BATCH, LENGTH = 1, 128


@dataclass(frozen=True)
class Budget:
    """The limit of a search; one of the five is given. The first two are of the searched layers together.

    Attributes:
        ratio: limit as a share of their float32 size, in (0, 1].
        bytes: limit in bytes.
        whole_model_bytes: limit of the file of all weights in bytes, with the other layers and its header.
        accounting: what counts: the remaining values ("values"), also their positions ("indices"), or also the scales
            and the rounding up to bytes ("all"), as in the packed file. The limits of the whole model count all.
        latency: limit of the time of the whole model in ONNX Runtime on the CPU, as a share of the dense one's, in
            (0, 1].
        milliseconds: the same limit in milliseconds.
        batch, length: the shape of the inputs that are timed (examples, tokens); None: BATCH and LENGTH.
    """

    ratio: float | None = None
    bytes: int | None = None
    whole_model_bytes: int | None = None
    accounting: Accounting = "all"
    latency: float | None = None
    milliseconds: float | None = None
    batch: int | None = None
    length: int | None = None

    def __post_init__(self) -> None:
        if self.accounting not in get_args(Accounting):
            raise unknown("accounting of a budget", self.accounting, get_args(Accounting))
        given = {name: value for name, value in self._limits.items() if value is not None}
        if len(given) > 1:
            raise ValueError(f"a budget has one limit, not {' and '.join(f'budget.{n}={v}' for n, v in given.items())}")
        share = self.ratio or self.latency
        if not all(value > 0 for value in given.values()) or (share or 0) > 1:
            name, value = next(iter(given.items()))
            raise ValueError(f"budget.{name}={value}: it must be above 0" + (" and at most 1" if share else ""))
        if (whole := given.keys() - {"ratio", "bytes"}) and self.accounting != "all":
            raise ValueError(f"budget.{whole.pop()} counts all, so budget.accounting={self.accounting} has no effect")
        for name, count in (("batch", self.batch), ("length", self.length)):
            if count is not None and count < 1:
                raise ValueError(f"budget.{name}={count}: it must be at least 1")
            if count is not None and not self.timed:
                raise ValueError(f"budget.{name}={count} is timed under a budget of latency, and has no effect here")

    @property
    def _limits(self) -> Mapping[str, float | None]:
        of_bytes = {"ratio": self.ratio, "bytes": self.bytes, "whole_model_bytes": self.whole_model_bytes}
        return {**of_bytes, "latency": self.latency, "milliseconds": self.milliseconds}

    @property
    def given(self) -> bool:
        """Whether there is a limit."""
        return any(value is not None for value in self._limits.values())

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of the inputs that are timed: examples, tokens."""
        return self.batch or BATCH, self.length or LENGTH

    @property
    def timed(self) -> bool:
        """Whether time is limited, and not bytes."""
        return self.latency is not None or self.milliseconds is not None

    def __str__(self) -> str:
        if self.latency is not None:
            return f"{self.latency:g} of the latency"
        if self.milliseconds is not None:
            return f"{self.milliseconds:g} ms"
        if self.whole_model_bytes is not None:
            return f"{self.whole_model_bytes} whole bytes"
        limit = "no limit" if self.ratio is None else f"{self.ratio:g}"
        limit = limit if self.bytes is None else f"{self.bytes} bytes"
        return limit if self.accounting == "all" else f"{limit} by {self.accounting}"

    def costs(self, layers: Sequence[Target], rest: int) -> Costs:
        """What a search among these layers counts, with so many bits around them.

        Raises:
            ValueError: as `bits`.
        """
        weights = sum(layer.shape[0] * layer.shape[1] for layer in layers)
        return Costs(
            budget=str(self),
            limit=self.bits(weights, rest),
            cost=self.of,
            bits=self.of,
            smallest=lambda cost: self.smallest(cost, weights, rest),
            words=lambda cost: f"{cost / 8:.0f} bytes",
        )

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

    def of(self, constraint: ConstraintSet | None, layer: Target) -> int:
        """Bits that the layer counts for in the set."""
        return self.cost(constraint, layer.shape)

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
