"""Schedules of rho, the strength of ADMM's pull."""

import abc
import math
from dataclasses import dataclass

from nxmiformer.optim.residuals import Residuals


class Schedule(abc.ABC):
    """rho of one weight after each update of Z and U."""

    @abc.abstractmethod
    def first(self) -> float:
        """rho before the first update."""

    @abc.abstractmethod
    def after(self, rho: float, step: int, residuals: Residuals) -> float:
        """rho from optimizer step `step` on, given what it was and what the update did."""


@dataclass(frozen=True)
class Constant(Schedule):
    """rho is constant."""

    rho: float

    def __post_init__(self) -> None:
        _positive("rho", self.rho)

    def first(self) -> float:
        return self.rho

    def after(self, rho: float, step: int, residuals: Residuals) -> float:
        return self.rho


@dataclass(frozen=True)
class Warmup(Schedule):
    """rho rises linearly from rho / steps to rho in `steps` optimizer steps, and stays there."""

    rho: float
    steps: int

    def __post_init__(self) -> None:
        _positive("rho", self.rho)
        _positive("steps", self.steps)

    def first(self) -> float:
        return self.rho / self.steps

    def after(self, rho: float, step: int, residuals: Residuals) -> float:
        return self.rho * min(1.0, max(1, step) / self.steps)


@dataclass(frozen=True)
class Ramp(Schedule):
    """rho rises geometrically from `start` to `end` in `steps` optimizer steps, and stays there (progressive rho, as
    in Leng et al. 2018, arXiv 1707.09870)."""

    start: float
    end: float
    steps: int

    def __post_init__(self) -> None:
        for name in ("start", "end", "steps"):
            _positive(name, getattr(self, name))

    def first(self) -> float:
        return self.start

    def after(self, rho: float, step: int, residuals: Residuals) -> float:
        return self.start * (self.end / self.start) ** min(1.0, step / self.steps)


@dataclass(frozen=True)
class Balanced(Schedule):
    """rho grows where the gap outweighs the dual residual by `ratio`, and shrinks in the opposite case (residual
    balancing, Boyd et al. 2011, section 3.4.1), within [least, most]."""

    rho: float
    ratio: float = 10.0
    factor: float = 2.0
    least: float = 1e-6
    most: float = 1.0

    def __post_init__(self) -> None:
        _positive("rho", self.rho)
        if self.factor <= 1 or self.ratio <= 1:
            raise ValueError(f"ratio and factor must be above 1, not {self.ratio} and {self.factor}")

    def first(self) -> float:
        return self.rho

    def after(self, rho: float, step: int, residuals: Residuals) -> float:
        dual = rho * residuals.dual
        if residuals.gap > self.ratio * dual:
            rho *= self.factor
        elif dual > self.ratio * residuals.gap:
            rho /= self.factor
        return min(self.most, max(self.least, rho))


@dataclass(frozen=True)
class SupportChange(Schedule):
    """rho grows by 1.3 where more than 10 % of the support changed, by 1.2 above 0.5 %, by 1.1 where any did (ALPS,
    Meng et al. 2024, arXiv 2406.07831, section 3.2), up to `most`."""

    rho: float
    most: float = 1.0

    def __post_init__(self) -> None:
        _positive("rho", self.rho)

    def first(self) -> float:
        return self.rho

    def after(self, rho: float, step: int, residuals: Residuals) -> float:
        steps = ((0.1, 1.3), (0.005, 1.2), (0.0, 1.1))
        factor = next((factor for least, factor in steps if residuals.flips > least), 1.0)
        return min(self.most, rho * factor)


def _positive(name: str, value: float) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name} must be a positive number, not {value}")
