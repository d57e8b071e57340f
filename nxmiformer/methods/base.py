"""What a compression method does within one phase of training."""

import abc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from nxmiformer.layers.compressed import Compressed
from nxmiformer.layers.everything import range_quantizers
from nxmiformer.layers.factored import unfactor
from nxmiformer.layers.found import distinct_layers
from nxmiformer.layers.moments import Batch
from nxmiformer.layers.projection import Moved, project, projected
from nxmiformer.layers.weights import WeightQuantizer, refresh, round_ahead
from nxmiformer.sets import Piece
from nxmiformer.sets.fields import check_fields


class Length(NamedTuple):
    """Optimizer steps of a phase, and of one pass over the training data."""

    steps: int
    epoch: int


class Calibration(NamedTuple):
    """What a method may look at before an optimizer step.

    Attributes:
        batches: of the training data, as many as it takes.
        forward: runs the model on one, without gradients.
        loss: the task's loss of one, with gradients.
        objective: what the phase minimises on one, with gradients: the task's loss, distillation, or both.
    """

    batches: Iterator[Batch]
    forward: Callable[[Batch], object]
    loss: Callable[[Batch], Tensor]
    objective: Callable[[Batch], Tensor]


@dataclass(kw_only=True)
class Method(abc.ABC):
    """How the compressed layers of a model are treated while it trains.

    A phase first calls `attach`, then `calibrate`, unless it resumes after its first step, then `parameters` and
    `optimizer`. At every optimizer step it calls `calibrate_again` (not at the first), `before_step`, and
    `before_clip`, when the gradients are computed but not clipped. The last phase ends with `finalize`, which leaves
    every compressed weight in its set, the others with `hand_over`.

    Attributes:
        refresh: optimizer steps between updates of the support.
        rescale: optimizer steps between searches for the scales.
        delay: optimizer steps at the start of the phase without any quantizer.
        learned_scales: train the scales (LSQ) instead of recomputing them.
    """

    prunes: ClassVar[bool] = False  # whether a support is all that it looks for

    refresh: int = 16
    rescale: int = 16
    delay: int = 0
    learned_scales: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        for name, least in (("refresh", 1), ("rescale", 1), ("delay", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least} optimizer steps, not {getattr(self, name)}")

    @property
    def labelled(self) -> bool:
        """Whether it looks at the task's loss of the labels, whatever the phase minimises."""
        return False

    @property
    def across_layers(self) -> bool:
        """Whether a layer may keep less than its set allows, for it competes with others."""
        return False

    def sees_inputs(self, steps: int) -> bool:
        """Whether quantizers whose ranges are fixed see inputs in a phase of so many steps, so that they have some."""
        return steps > self.delay

    def attach(self, model: nn.Module, length: Length) -> None:
        """Attach to the model's compressed layers.

        Raises:
            ValueError: it only prunes, and no layer's set has zeros to choose.
        """
        unfactor(model)
        self.model, self.length = model, length
        self.layers = distinct_layers(model)
        sets = [layer.quantizer.constraint for layer in self.layers.values()]
        if self.prunes and sets and all(each.sparsity is None for each in sets):
            points = " and ".join(dict.fromkeys(map(str, sets)))
            raise ValueError(
                f"{type(self).__name__} prunes, and {points} leaves nothing to prune: take a plan with sparsity, or "
                f"recipe=ste_qat, which trains towards any set"
            )
        for layer in self.layers.values():
            layer.quantizer.reset()
            self.prepare(layer)
            layer.quantizer.refresh(layer.matrix)
            if self.learned_scales:
                layer.quantizer.learn()
        self._activate(self.delay == 0)

    def calibrate(self, given: Calibration) -> Iterator[str]:
        """Before the first step, look at what the model computes on training batches. Yields the name of each layer
        that is done."""
        return iter(())

    def calibrate_again(self, step: int, given: Calibration) -> Iterator[str]:
        """As `calibrate`, before optimizer step `step`, from 1 on."""
        return iter(())

    @abc.abstractmethod
    def prepare(self, layer: Compressed) -> None:
        """Say what the layer's forward pass sees (`quantizer.seen`), and which support it keeps, if any."""

    def parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """What this phase trains: everything, unless a method says otherwise."""
        return ((name, p) for name, p in self.model.named_parameters() if p.requires_grad)

    def optimizer(self, base: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """The optimizer to train with, around `base`."""
        base.register_step_pre_hook(lambda *_: self._let_go())
        return base

    def _let_go(self) -> None:
        """Forget what the weights were rounded to, as they are about to move."""
        for layer in self.layers.values():
            layer.quantizer.point = None

    def before_step(self, step: int, ahead: bool = True) -> None:
        """Before the forward passes of optimizer step `step` (from 0).

        `ahead` rounds the weights once for all of them; a compiled model rounds them where it reads them, for nothing.
        """
        if step == self.delay:
            self._activate(True)
        rescale = step % self.rescale == 0
        if step and (rescale or step % self.refresh == 0):
            refresh(self._weights(), rescale, recover=False)
        if ahead:
            round_ahead(self._weights())

    def _weights(self) -> list[tuple[WeightQuantizer, Tensor]]:
        return [(layer.quantizer, layer.matrix) for layer in self.layers.values()]

    def before_clip(self) -> None:  # noqa: B027 (most methods have nothing to do here)
        """After the backward pass, before the gradients are clipped."""

    def keep_support(self) -> None:
        """Let no gradient reach a pruned weight: the straight-through one does, where a support is fixed."""
        for layer in self.layers.values():
            mask, gradient = layer.quantizer.mask, layer.weight.grad
            if mask is not None and gradient is not None:
                gradient.mul_(mask.t() if layer.transposed else mask)

    def _activate(self, active: bool) -> None:
        for layer in self.layers.values():
            layer.quantizer.active = active
        self._activate_inputs(active)

    def _activate_inputs(self, active: bool) -> None:
        for layer in self.layers.values():
            if layer.inputs is not None:
                layer.inputs.active = active
        for quantizer in range_quantizers(self.model).values():
            quantizer.active = active

    @contextmanager
    def masks_kept(self) -> Iterator[None]:
        """Whatever happens to the supports meanwhile, put them back."""
        masks = {name: layer.quantizer.mask for name, layer in self.layers.items()}
        try:
            yield
        finally:
            for name, mask in masks.items():
                self.layers[name].quantizer.hold_mask(mask)

    @contextmanager
    def as_finished(self) -> Iterator[None]:
        """The model as it would be if the phase ended now, for an evaluation."""
        with projected(self.model):
            yield

    def finalize(self) -> Moved:
        """Leave every compressed weight in its set, and return how far each was from it."""
        return project(self.model)

    def hand_over(self) -> Moved:
        """Leave the weights for the next phase: as `finalize` does, unless a method overrides it."""
        return self.finalize()

    def to_supports(self) -> Moved:
        """Project onto the sparsity sets, where there are any. The remaining weights stay between the levels of their
        grid, where training has put them. Rounded, they would need many steps to reach the next level."""
        return project(self.model, lambda q, w: (q.constraint.sparsity or q.constraint).project(w))

    def metrics(self, layers: bool = False) -> dict[str, float]:
        """Metrics to log, overall and, with `layers`, for each layer."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """The pieces that the forward pass sees, learned scales with their signs; tensors only, by layer and part."""
        pieces: dict[str, Tensor] = {}
        for name, layer in self.layers.items():
            scales = layer.quantizer.scales
            parts = {"mask": layer.quantizer.mask, "scales": None if scales is None else scales.detach()}
            pieces.update({f"{name}.{part}": tensor for part, tensor in parts.items() if tensor is not None})
        return {"pieces": pieces}

    def load_state_dict(self, state: dict[str, Any], step: int) -> None:
        """Continue from `state`, on any device, at optimizer step `step`."""
        for name, layer in self.layers.items():
            quantizer = layer.quantizer
            found = (state["pieces"].get(f"{name}.{part}") for part in Piece._fields)
            quantizer.hold(Piece(*(part if part is None else part.to(layer.weight.device) for part in found)))
        self._activate(step > self.delay or self.delay == 0)
