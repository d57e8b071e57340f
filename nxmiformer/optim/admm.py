"""ADMM around any torch optimizer."""

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from nxmiformer.errors import unknown
from nxmiformer.layers.precision import too_narrow
from nxmiformer.layers.wrapped import unwrapped_names
from nxmiformer.optim.residuals import Residuals, relative, squares
from nxmiformer.optim.schedule import Constant, Schedule
from nxmiformer.sets import ConstraintSet
from nxmiformer.sets.batch import Asked, nearest

Pull = Literal["decoupled", "penalty", "manual"]
Importance = Literal["second_moment", "adam"]


class ADMM(torch.optim.Optimizer):
    """min f(W) subject to W_i in S_i, by ADMM in scaled form (Boyd et al. 2011, section 3.1.1; NxMiFormer, arXiv
    2206.15014), around a base optimizer that takes the steps on f.

    Each constrained weight W has an auxiliary Z in its set and a scaled dual U:

        W <- a base step on f(W), with the pull (rho / 2) ||W - Z + U||^2
        Z <- P(W + U),  U <- dual * (U + W - Z)      every `interval` steps

    Z starts at P(W), and U at zero. A call of `update()` right after construction starts as the paper's code does, with
    U = W - Z. When rho changes at an update, U is multiplied by rho_old / rho_new, so that the multiplier rho * U stays
    the same. Only the base optimizer acts on weights without a set. With no sets at all, this is the base optimizer.

    The pull is applied in one of three ways:

    - "decoupled": after the base step, W <- (W + rho (Z - U)) / (1 + rho), the proximal step of the penalty. It has no
      learning rate and no adaptive scaling, and is stable for every rho. It also pulls weights without a gradient.
    - "penalty": rho (W - Z + U) is added to the gradient inside `step`, so after any clipping by the caller.
    - "manual": as "penalty", but the caller calls `add_penalty()`, so that it can be clipped too.

    An adaptive base such as Adam divides the penalty by the size of its gradients. With it, "decoupled" closes the gap,
    and a penalty of the same rho mostly does not. "decoupled" is also the penalty in Adam's own metric D, the diagonal
    of its denominators: with m its mean gradient, the W that minimises m W + ||W - W_0||_D^2 / (2 lr)
    + (s / 2) ||W - Z + U||_D^2 is Adam's step, and then this one with rho = s * lr. importance="adam" projects in this
    metric. The loss that a closure returns does not include the penalty, so a line search needs "decoupled".

    Args:
        base: the optimizer, already built over the parameters.
        named_parameters: (name, parameter) pairs, as of `model.named_parameters()`, also of a wrapped model.
        sets: parameter name -> set of its (2-D) value. For a weight stored (in, out): `Transposed(set)`.
        rho: a number, or a `Schedule`, which each weight follows by its own residuals.
        interval: optimizer steps between two updates of Z and U.
        pull: see above.
        dual: factor on the dual at each update. 1 is ADMM; 0 keeps U at zero, which is the quadratic penalty method and
            needs no memory for U. Values between decay the dual.
        importance: "second_moment" weights the projection by Adam's `exp_avg_sq`, a diagonal Fisher estimate; "adam" by
            its denominator, the root of that; None: no weights.
        dtype: of Z and U; None: that of the parameter. Each takes one element per constrained weight.

    Raises:
        ValueError: a name does not exist or `base` does not train it, a set rejects the shape, a weight has a value
            that is not finite or is float16, or an option is out of range.

    Warns:
        UserWarning: bfloat16 weights require gradients.
    """

    def __init__(
        self,
        base: torch.optim.Optimizer,
        named_parameters: Iterable[tuple[str, torch.nn.Parameter]],
        sets: Mapping[str, ConstraintSet],
        *,
        rho: float | Schedule,
        interval: int = 32,
        pull: Pull = "decoupled",
        dual: float = 1.0,
        importance: Importance | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if interval < 1:
            raise ValueError(f"interval must be at least one optimizer step, not {interval}")
        if pull not in get_args(Pull):
            raise unknown("pull", pull, get_args(Pull))
        if not 0 <= dual <= 1:
            raise ValueError(f"dual must be in [0, 1], not {dual}")
        if importance is not None and importance not in get_args(Importance):
            raise unknown("importance", importance, get_args(Importance))
        super().__init__(base.param_groups, base.defaults)
        self.base = base
        self._share()
        self.schedule = rho if isinstance(rho, Schedule) else Constant(rho)
        self.interval, self.pull, self.dual, self.importance = interval, pull, dual, importance
        self.sets = dict(sets)
        self.weights = self._find(dict(named_parameters))
        self._check_precision()
        self.steps = 0
        self.rho = dict.fromkeys(self.sets, self.schedule.first())
        self.residuals: dict[str, Residuals] = {}
        self.gap = self.flips = self.dual_residual = float("nan")
        self.z = {name: self._project(name, w.detach()).to(dtype or w.dtype) for name, w in self.weights.items()}
        # A dual that is always zero is not stored.
        self.u = {name: torch.zeros_like(z) for name, z in self.z.items()} if dual else {}

    def _find(self, parameters: Mapping[str, torch.nn.Parameter]) -> dict[str, torch.nn.Parameter]:
        """The constrained parameters by name, after a check that they can be constrained."""
        parameters = unwrapped_names(parameters, self.sets)
        trained = {id(p) for group in self.base.param_groups for p in group["params"]}
        problems = []
        for name, constraint in self.sets.items():
            if name not in parameters:
                raise unknown("parameter in sets", name, parameters)
            w = parameters[name]
            if id(w) not in trained:
                problems.append(f"{name}: the base optimizer does not train it")
            try:
                constraint.check(w.detach())
            except ValueError as error:
                problems.append(f"{name}: {error}")
        if problems:
            raise ValueError("these parameters cannot be constrained:\n  " + "\n  ".join(problems))
        return {name: parameters[name] for name in self.sets}

    def _check_precision(self) -> None:
        narrow = too_narrow(self.weights)
        if narrow is not None and any(w.dtype == torch.float16 for w in self.weights.values()):
            raise ValueError(narrow)
        if narrow is not None:
            warnings.warn(narrow, stacklevel=3)

    def _share(self) -> None:
        """Share the groups with the base: learning-rate schedules write to them, and the base reads them."""
        self.param_groups, self.state = self.base.param_groups, self.base.state

    def _project(self, name: str, w: Tensor) -> Tensor:
        self._check(name, w)
        constraint = self.sets[name]
        return constraint.apply(w, constraint.piece(w, self._importance(name)))

    def _check(self, name: str, w: Tensor) -> None:
        try:
            self.sets[name].check(w, self._importance(name))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error

    def _importance(self, name: str) -> Tensor | None:
        moments = self.base.state.get(self.weights[name], {})
        if self.importance is None or not moments:
            return None
        if "exp_avg_sq" not in moments:
            raise ValueError(
                f"importance={self.importance!r} needs an Adam, whose state has 'exp_avg_sq'; that of {name} under "
                f"{type(self.base).__name__} has {sorted(moments)}"
            )
        squares: Tensor = moments["exp_avg_sq"]
        return squares if self.importance == "second_moment" else squares.sqrt() + self.defaults["eps"]

    def _target(self, name: str) -> Tensor:
        """Z - U."""
        return self.z[name] - self.u[name] if self.u else self.z[name]

    @torch.no_grad()
    def add_penalty(self) -> None:
        """Add the gradient rho (W - Z + U) of the penalty to the existing gradients."""
        for name, w in self.weights.items():
            if w.grad is not None:
                w.grad.add_((w - self._target(name)).to(w.grad.dtype), alpha=self.rho[name])

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One base step, the pull, and at every `interval`-th call an update of Z and U.

        `closure` evaluates the loss and its gradients, as for the base optimizer. Its result is returned.
        """
        if self.pull != "penalty":
            loss = self.base.step() if closure is None else self.base.step(closure)
        elif closure is None:
            self.add_penalty()
            loss = self.base.step()
        else:
            loss = self.base.step(self._penalised(closure))
        if self.pull == "decoupled":
            self._proximal_step()
        self.steps += 1
        if self.steps % self.interval == 0:
            self.update()
        return loss

    def _penalised(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        def evaluate() -> Any:
            loss = closure()
            self.add_penalty()
            return loss

        return evaluate

    @torch.no_grad()
    def _proximal_step(self) -> None:
        weights = list(self.weights.values())
        targets = [self._target(name).to(w.dtype) for name, w in self.weights.items()]
        for rho in set(self.rho.values()):
            alike = [i for i, each in enumerate(self.rho.values()) if each == rho]
            torch._foreach_lerp_([weights[i] for i in alike], [targets[i] for i in alike], rho / (1 + rho))

    @torch.no_grad()
    def update(self) -> None:
        """Z <- P(W + U), U <- dual * (U + W - Z), the residuals, and the next rho.

        Raises:
            ValueError: a weight is not finite. Z, U and rho are then unchanged.
        """
        names = list(self.weights)
        if not names:
            return
        # In the wider dtype: the dual adds up small steps.
        shifted = {name: w + self.u[name] if self.u else w.detach() for name, w in self.weights.items()}
        found = nearest([Asked(self.sets[name], w, self._importance(name)) for name, w in shifted.items()])
        z = {name: point.to(self.z[name].dtype) for name, point in zip(names, found, strict=True)}
        sums = [squares(w.detach(), z[name], self.z[name]) for name, w in self.weights.items()]
        table = torch.stack(sums).double().cpu()  # one wait for all layers
        if not bool(table.isfinite().all()):
            for name, w in shifted.items():
                self._check(name, w)
        for name, row in zip(names, table, strict=True):
            if self.u:
                self.u[name].copy_(shifted[name] - z[name]).mul_(self.dual)
            self.z[name] = z[name]
            self.residuals[name] = relative(row)
            self._set_rho(name, self.schedule.after(self.rho[name], self.steps, self.residuals[name]))
        self.gap, self.dual_residual, self.flips = relative(table.sum(0))

    def _set_rho(self, name: str, rho: float) -> None:
        if rho != self.rho[name] and self.u:
            self.u[name].mul_(self.rho[name] / rho)
        self.rho[name] = rho

    def metrics(self, layers: bool = False) -> dict[str, float]:
        """`gap`, `dual` and `flips` over all constrained weights and the mean `rho` at the last update; with `layers`
        the same of each, as `gap/<name>`."""
        mean = sum(self.rho.values()) / max(1, len(self.rho))
        overall = {"gap": self.gap, "dual": self.dual_residual, "flips": self.flips, "rho": mean}
        if not layers:
            return overall
        each = {f"{key}/{name}": v for name, r in self.residuals.items() for key, v in r._asdict().items()}
        return {**overall, **each, **{f"rho/{name}": rho for name, rho in self.rho.items()}}

    @torch.no_grad()
    def finalize(self) -> None:
        """W <- P(W): every constrained weight becomes a point of its set."""
        for name, w in self.weights.items():
            w.copy_(self._project(name, w.detach()))

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As the base optimizer."""
        self.base.zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add an unconstrained group to the base optimizer."""
        if "base" in self.__dict__:
            self.base.add_param_group(param_group)
            self._share()
        else:  # called by Optimizer.__init__, for the groups that the base has already
            super().add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's state, and under `admm` Z and U in their own dtypes, by parameter name.

        Only tensors, numbers and strings: `torch.load(..., weights_only=True)` reads it back.
        """
        state = {"steps": self.steps, "rho": dict(self.rho), "sets": self._described(), "z": dict(self.z)}
        residuals = {name: list(r) for name, r in self.residuals.items()}
        overall = [self.gap, self.dual_residual, self.flips]
        return {
            **self.base.state_dict(),
            "admm": {**state, "u": dict(self.u), "residuals": residuals, "overall": overall},
        }

    def _described(self) -> dict[str, str]:
        return {name: f"{constraint!r} of {tuple(self.z[name].shape)}" for name, constraint in self.sets.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state that `state_dict` gave.

        Raises:
            ValueError: the state is not of an ADMM, or is of other sets. Nothing is changed then.
        """
        if "admm" not in state_dict:
            raise ValueError("this is not the state of an ADMM optimizer: it has no 'admm'")
        admm = state_dict["admm"]
        theirs, ours = admm["sets"], self._described()
        names = sorted({name for name in {*theirs, *ours} if theirs.get(name) != ours.get(name)})
        if names:
            lines = [f"{name}: {theirs.get(name, 'free')} there, {ours.get(name, 'free')} here" for name in names]
            raise ValueError("this is the state of an ADMM over other sets:\n  " + "\n  ".join(lines))
        if bool(admm["u"]) != bool(self.u) and self.sets:
            raise ValueError("the state and this optimizer differ in whether they keep a dual (dual=0 keeps none)")
        self.base.load_state_dict({key: value for key, value in state_dict.items() if key != "admm"})
        self._share()
        self.steps, self.rho = int(admm["steps"]), dict(admm["rho"])
        self.residuals = {name: Residuals(*values) for name, values in admm["residuals"].items()}
        self.gap, self.dual_residual, self.flips = admm["overall"]
        for ours_of, theirs_of in ((self.z, admm["z"]), (self.u, admm["u"])):
            for name, tensor in ours_of.items():
                tensor.copy_(theirs_of[name])
