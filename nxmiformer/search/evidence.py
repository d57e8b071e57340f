"""What is measured on a dense model, to predict the damage of compression."""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from nxmiformer.layers.found import compressed_layers, linear_layers
from nxmiformer.layers.linear import CompressedLinear
from nxmiformer.layers.mode import evaluating
from nxmiformer.layers.moments import Batch, input_moments
from nxmiformer.optim import Problem
from nxmiformer.sets import ConstraintSet
from nxmiformer.tasks.units import Units


@dataclass(frozen=True)
class Evidence:
    """A dense model, and batches of a holdout of its training data.

    Attributes:
        model: a converted model with its quantizers off; its parameters may need no gradient.
        batches: with their targets.
        forward: runs `model` on a batch, and gives the units of its outputs.
        truths: the correct answers of the examples of each batch.
        metric: the task's score, from the units of each batch, the batches, and the truths of all examples.
    """

    model: nn.Module
    batches: Sequence[Batch]
    forward: Callable[[Batch], Units]
    truths: Sequence[Sequence[Any]]
    metric: Callable[[Sequence[Units], Sequence[Batch], Sequence[Any]], float]
    _problems: dict[str, Problem] = field(default_factory=dict, init=False, repr=False, compare=False)
    _points: dict[tuple[str, ConstraintSet, int], dict[str, Tensor]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _parts: "dict[int, Evidence]" = field(default_factory=dict, init=False, repr=False, compare=False)

    @cached_property
    def layers(self) -> dict[str, CompressedLinear]:
        """The layers that can be compressed, by name, each weight once."""
        return linear_layers(self.model)

    @property
    def examples(self) -> int:
        """How many there are in the batches."""
        return sum(map(_size, self.batches))

    @cached_property
    def moments(self) -> dict[str, Tensor]:
        """The second moment of each layer's inputs, (in, in); see `input_moments`."""
        return input_moments(self.model, self.batches, self.forward)

    def problem(self, layer: str) -> Problem:
        """The reconstruction of a layer from its inputs; its eigenvectors are computed once."""
        if layer not in self._problems:
            self._problems[layer] = Problem(self.layers[layer].matrix.detach(), self.moments[layer])
        return self._problems[layer]

    def point(self, layer: str, constraint: ConstraintSet, iterations: int) -> Tensor:
        """The point of the set that replaces a layer's weight, (out, in): reconstructed in so many iterations a stage,
        or its projection for 0. It is made once; packed, it takes the bits that it is worth."""
        weight, key = self.layers[layer].matrix.detach(), (layer, constraint, iterations)
        if key not in self._points:
            found = self.problem(layer).point(constraint, iterations) if iterations else constraint.project(weight)
            self._points[key] = constraint.pack(found.cpu())  # sets unpack on the CPU alone
        return constraint.unpack(self._points[key], (weight.shape[0], weight.shape[1]), weight.dtype)

    def part(self, examples: int) -> "Evidence":
        """So many of the examples or a few more: an equal share of each batch, so that they are as long as all."""
        if examples >= self.examples:
            return self
        if examples not in self._parts:
            counts = [math.ceil(_size(batch) * examples / self.examples) for batch in self.batches]
            pairs = zip(self.batches, counts, strict=True)
            fewer = [{key: value[:count] for key, value in batch.items()} for batch, count in pairs]
            truths = [each[:count] for each, count in zip(self.truths, counts, strict=True)]
            self._parts[examples] = Evidence(self.model, fewer, self.forward, truths, self.metric)
        return self._parts[examples]

    @cached_property
    def dense(self) -> list[Units]:
        """The dense model's units, a batch at a time."""
        return self._units()

    @property
    def logits(self) -> list[Tensor]:
        """Theirs, (units, outputs) a batch."""
        return [units.logits for units in self.dense]

    @cached_property
    def units(self) -> int:
        """How many there are in the batches."""
        return sum(map(len, self.dense))

    @torch.no_grad()
    def _units(self) -> list[Units]:
        with evaluating(self.model):
            return [self.forward(batch) for batch in self.batches]

    def changed(self, weights: Mapping[str, Tensor]) -> list[Tensor]:
        """The logits, a batch at a time, when layers have these weights (out, in) instead."""
        with self._replaced(weights):
            return [units.logits for units in self._units()]

    def divergence(self, logits: Sequence[Tensor]) -> float:
        """How far `logits` are from the dense model's: KL(dense || theirs), mean over the units; half the squared
        error for a regression. In float64, as float32 leaves as much rounding as a good set does damage."""
        total = sum(
            units.outcome.divergences(units.logits.double(), after.double()).sum().item()
            for units, after in zip(self.dense, logits, strict=True)
        )
        return max(0.0, total) / self.units

    def distance(self, logits: Sequence[Tensor]) -> float:
        """Half the mean squared change from the dense model's centred logits, mean over the units. The divergence tends
        to this at a high temperature (Hinton et al. 2015, arXiv 1503.02531, eq. 4). For a regression both are the same.
        A unit of which the model is sure counts as much as any other."""
        pairs = zip(self.dense, logits, strict=True)
        return (
            sum(each.outcome.distances(each.logits.double(), after.double()).sum().item() for each, after in pairs)
            / self.units
        )

    def loss(self, logits: Sequence[Tensor]) -> float:
        """The task's loss at `logits`, mean over the units."""
        pairs = zip(self.dense, logits, strict=True)
        return sum(each.outcome.losses(after, each.targets).sum().item() for each, after in pairs) / self.units

    def score(self, logits: Sequence[Tensor]) -> float:
        """The task's score at `logits`."""
        units = [each.saying(after) for each, after in zip(self.dense, logits, strict=True)]
        return self.metric(units, self.batches, list(chain(*self.truths)))

    @contextmanager
    def _replaced(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        self.dense  # noqa: B018 (those of the dense model are taken before anything is replaced)
        kept = {name: self.layers[name].matrix.detach().clone() for name in weights}
        try:
            self._put(weights)
            yield
        finally:
            self._put(kept)

    @torch.no_grad()
    def _put(self, weights: Mapping[str, Tensor]) -> None:
        for name, weight in weights.items():
            self.layers[name].matrix.copy_(weight)

    @cached_property
    def output_gradients(self) -> dict[str, Tensor]:
        """For each layer's outputs, (out,): the squared gradient of the logits, in a random direction of unit mean
        square. Logits are centred as in `distance`; squares are summed over the tokens of a batch, and averaged over
        the units. It estimates the diagonal of the output factor of K-FAC (Martens and Grosse 2015, arXiv 1503.05671,
        eq. 1, section 3), with the `distance` of the logits in the place of their divergence."""
        totals = {name: torch.zeros(each.out_features, device=each.weight.device) for name, each in self.layers.items()}
        names = {id(layer.weight): name for name, layer in self.layers.items()}

        def look(layer: CompressedLinear, _: object, output: Tensor) -> None:
            name = names[id(layer.weight)]

            def add(grad: Tensor) -> None:
                totals[name] += grad.float().flatten(0, -2).square().sum(0)

            if output.requires_grad:
                output.register_hook(add)

        generator = torch.Generator().manual_seed(0)
        modules = dict.fromkeys(compressed_layers(self.model).values())  # all that share a weight, each once
        hooks = [module.register_forward_hook(look) for module in modules]
        try:
            for units in self._with_gradients():
                possible = units.logits.isfinite()
                drawn = torch.randn(units.logits.shape, generator=generator, device="cpu").to(possible.device)
                direction = units.outcome.centred(drawn.masked_fill(~possible, -math.inf))
                scaled = direction / possible.sum(-1, keepdim=True).sqrt()
                (units.logits.masked_fill(~possible, 0.0) * scaled).sum().backward()
        finally:
            for hook in hooks:
                hook.remove()
        return {name: total / self.units for name, total in totals.items()}

    @cached_property
    def expansion(self) -> dict[str, tuple[Tensor, Tensor]]:
        """For each layer, both (out, in): the gradient of the mean loss, and the diagonal of its empirical Fisher
        information. The latter is the mean over batches of the squared gradient times the batch size."""
        sums = {name: (torch.zeros_like(m), torch.zeros_like(m)) for name, m in self._matrices().items()}
        for units in self._with_gradients():
            size = len(units)
            units.outcome.losses(units.logits, units.targets).mean().backward()
            for name, layer in self.layers.items():
                assert layer.weight.grad is not None
                grad = (layer.weight.grad.t() if layer.transposed else layer.weight.grad).float()
                sums[name][0].add_(grad, alpha=size)
                sums[name][1].add_(grad.square(), alpha=size * size)
        return {name: (slope / self.units, square / self.units) for name, (slope, square) in sums.items()}

    def _matrices(self) -> dict[str, Tensor]:
        return {name: layer.matrix.detach().float() for name, layer in self.layers.items()}

    def _with_gradients(self) -> Iterator[Units]:
        """The units of each batch, from whose logits gradients reach the layers' weights, which are then as before."""
        before = [(p, p.requires_grad, p.grad) for p in self.model.parameters()]
        weights = {id(layer.weight) for layer in self.layers.values()}
        for parameter, _, _ in before:
            parameter.requires_grad_(id(parameter) in weights)
            parameter.grad = None
        try:
            with evaluating(self.model), torch.enable_grad():
                for batch in self.batches:
                    yield self.forward(batch)
                    self.model.zero_grad()
        finally:
            for parameter, needed, grad in before:
                parameter.requires_grad_(needed)
                parameter.grad = grad

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with the model, which of its layers are converted, and the batches."""
        digest = hashlib.sha256(" ".join(self.layers).encode())
        for name, tensor in self.model.state_dict().items():
            digest.update(name.encode() + tensor.cpu().float().contiguous().numpy().tobytes())
        for batch in self.batches:
            for key, tensor in sorted(batch.items()):
                digest.update(f"{key}{tuple(tensor.shape)}".encode() + tensor.cpu().numpy().tobytes())
        return digest.hexdigest()[:16]


def _size(batch: Batch) -> int:
    """Examples in a batch."""
    return len(next(iter(batch.values())))
