"""A slow twin of ADMM for one weight: NumPy, float64, one equation a line, and supports found by enumeration."""

import itertools
from collections.abc import Callable

import numpy as np


def nearest_nm(w: np.ndarray, keep: int, group: int) -> np.ndarray:
    """The nearest matrix with at most `keep` non-zeros in each `group` of a row: every support is tried."""
    out = np.zeros_like(w)
    for row, start in itertools.product(range(w.shape[0]), range(0, w.shape[1], group)):
        supports = itertools.combinations(range(start, start + group), keep)
        best = max(supports, key=lambda columns: sum(w[row, c] ** 2 for c in columns))
        out[row, list(best)] = w[row, list(best)]
    return out


def constrained_minimum(target: np.ndarray, hessian: np.ndarray, keep: int, group: int) -> np.ndarray:
    """argmin of sum over rows (w - target) hessian (w - target)' over the N:M matrices: every support is tried."""
    rows, columns = target.shape
    groups = [itertools.combinations(range(start, start + group), keep) for start in range(0, columns, group)]
    supports = [np.array(sum(choice, ())) for choice in itertools.product(*groups)]
    out = np.zeros_like(target)
    for row in range(rows):
        least = np.inf
        for support in supports:
            w = np.zeros(columns)
            w[support] = np.linalg.solve(hessian[np.ix_(support, support)], (hessian @ target[row])[support])
            loss = (w - target[row]) @ hessian @ (w - target[row])
            if loss < least:
                least, out[row] = loss, w
    return out


class NaiveSGD:
    """SGD with momentum, as torch defines it."""

    def __init__(self, lr: float, momentum: float) -> None:
        self.lr, self.momentum, self.velocity = lr, momentum, 0.0

    def step(self, w: np.ndarray, grad: np.ndarray) -> np.ndarray:
        self.velocity = self.momentum * self.velocity + grad
        return w - self.lr * self.velocity


class NaiveAdamW:
    """AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101, algorithm 2)."""

    def __init__(self, lr: float, weight_decay: float, betas: tuple[float, float] = (0.9, 0.999)) -> None:
        self.lr, self.weight_decay, self.betas = lr, weight_decay, betas
        self.m, self.v, self.t = 0.0, 0.0, 0

    def step(self, w: np.ndarray, grad: np.ndarray) -> np.ndarray:
        self.t += 1
        self.m = self.betas[0] * self.m + (1 - self.betas[0]) * grad
        self.v = self.betas[1] * self.v + (1 - self.betas[1]) * grad**2
        m, v = self.m / (1 - self.betas[0] ** self.t), self.v / (1 - self.betas[1] ** self.t)
        return w - self.lr * self.weight_decay * w - self.lr * m / (np.sqrt(v) + 1e-8)


class NaiveADMM:
    """The equations of ADMM's docstring. `next_rho(rho, step, flips)` is rho after an update."""

    def __init__(
        self,
        w: np.ndarray,
        project: Callable[[np.ndarray], np.ndarray],
        base: NaiveSGD | NaiveAdamW,
        rho: float,
        next_rho: Callable[[float, int, float], float],
        *,
        interval: int,
        pull: str,
        dual: float,
    ) -> None:
        self.w, self.z, self.u = w.copy(), project(w), np.zeros_like(w)
        self.project, self.base, self.rho, self.next_rho = project, base, rho, next_rho
        self.interval, self.pull, self.dual, self.steps = interval, pull, dual, 0
        self.flips = self.gap = self.dual_residual = float("nan")

    def step(self, grad: np.ndarray) -> None:
        if self.pull != "decoupled":
            grad = grad + self.rho * (self.w - self.z + self.u)
        self.w = self.base.step(self.w, grad)
        if self.pull == "decoupled":
            self.w = (self.w + self.rho * (self.z - self.u)) / (1 + self.rho)
        self.steps += 1
        if self.steps % self.interval == 0:
            self.update()

    def update(self) -> None:
        before = self.z
        self.z = self.project(self.w + self.u)
        self.u = self.dual * (self.u + self.w - self.z)
        norm = np.sqrt(np.sum(self.w**2))
        self.gap = np.sqrt(np.sum((self.w - self.z) ** 2)) / norm
        self.dual_residual = np.sqrt(np.sum((self.z - before) ** 2)) / norm
        self.flips = np.mean((self.z != 0) != (before != 0))
        rho = self.next_rho(self.rho, self.steps, self.flips)
        self.u = self.u * (self.rho / rho)
        self.rho = rho
