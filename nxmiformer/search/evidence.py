"""What is measured on a dense model to foresee what compression does to it."""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nxmiformer.layers.convert import compressed_layers, linear_layers
from nxmiformer.layers.linear import CompressedLinear
from nxmiformer.layers.mode import evaluating
from nxmiformer.layers.moments import Batch, input_moments
from nxmiformer.optim import Problem
from nxmiformer.sets import ConstraintSet


@dataclass(frozen=True)
class Evidence:
    """A dense model, and batches of a holdout of its training data.

    Attributes:
        model: a converted model with its quantizers off; its parameters may need no gradient.
        batches: with `labels`.
        forward: runs `model` on a batch, without its labels, and gives the logits (batch, outputs).
        metric: the task's score, from logits (examples, outputs) and labels (examples,).
    """

    model: nn.Module
    batches: Sequence[Batch]
    forward: Callable[[Batch], Tensor]
    metric: Callable[[np.ndarray, np.ndarray], float]
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
        return sum(len(batch["labels"]) for batch in self.batches)

    @property
    def labels(self) -> np.ndarray:
        """Of all examples, (examples,)."""
        return torch.cat([batch["labels"] for batch in self.batches]).cpu().numpy()

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
        """The point of the set that stands in for a layer's weight, (out, in): reconstructed in so many iterations a
        stage, or its plain projection for 0. It is made once; packed, it takes the bits that it is worth."""
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
            counts = [math.ceil(len(batch["labels"]) * examples / self.examples) for batch in self.batches]
            pairs = zip(self.batches, counts, strict=True)
            fewer = [{key: value[:count] for key, value in batch.items()} for batch, count in pairs]
            self._parts[examples] = Evidence(self.model, fewer, self.forward, self.metric)
        return self._parts[examples]

    @cached_property
    def logits(self) -> list[Tensor]:
        """The dense model's, a batch at a time."""
        return self._logits()

    @torch.no_grad()
    def _logits(self) -> list[Tensor]:
        with evaluating(self.model):
            return [self.forward(batch).float() for batch in self.batches]

    def changed(self, weights: Mapping[str, Tensor]) -> list[Tensor]:
        """The logits, a batch at a time, when layers have these weights (out, in) instead."""
        with self._replaced(weights):
            return self._logits()

    def divergence(self, logits: Sequence[Tensor]) -> float:
        """How far `logits` are from the dense model's: KL(dense || theirs), mean over the examples; half the squared
        error for a regression."""
        return sum(_divergence(*pair) for pair in zip(self.logits, logits, strict=True)) / self.examples

    def distance(self, logits: Sequence[Tensor]) -> float:
        """Half the mean squared change from the dense model's zero-meaned logits, mean over the examples: what the
        divergence comes to at a high temperature (Hinton et al. 2015, arXiv 1503.02531, eq. 4); for a regression the
        same as the divergence. An example of which the model is sure counts as much as any other."""
        changes = (_zero_meaned(after.double() - before) for before, after in zip(self.logits, logits, strict=True))
        return sum(0.5 * change.square().mean(-1).sum().item() for change in changes) / self.examples

    def loss(self, logits: Sequence[Tensor]) -> float:
        """The task's loss at `logits`, mean over the examples."""
        pairs = zip(logits, self.batches, strict=True)
        return sum(loss(each, batch["labels"]).sum().item() for each, batch in pairs) / self.examples

    def score(self, logits: Sequence[Tensor]) -> float:
        """The task's score at `logits`."""
        return self.metric(torch.cat(list(logits)).cpu().numpy(), self.labels)

    @contextmanager
    def _replaced(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        self.logits  # noqa: B018 (those of the dense model are taken before anything is replaced)
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
        """Of each layer's outputs, (out,): the squared gradient of the logits, less their mean as in `distance`, in a
        random direction of unit mean square, summed over an example's tokens, mean over the examples. It estimates the
        diagonal of the output factor of K-FAC (Martens and Grosse 2015, arXiv 1503.05671, eq. 1, section 3), with the
        `distance` of the logits in the place of their divergence."""
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
            for _, logits in self._with_gradients():
                drawn = torch.randn(logits.shape, generator=generator, device="cpu")  # the same wherever the model is
                direction = _zero_meaned(drawn).to(logits.device) / math.sqrt(logits.shape[-1])
                (logits * direction).sum().backward()
        finally:
            for hook in hooks:
                hook.remove()
        return {name: total / self.examples for name, total in totals.items()}

    @cached_property
    def expansion(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Of each layer, (out, in) both: the gradient of the mean loss, and the diagonal of its empirical Fisher
        information, the mean over batches of the squared gradient times the batch size."""
        sums = {name: (torch.zeros_like(m), torch.zeros_like(m)) for name, m in self._matrices().items()}
        for batch, logits in self._with_gradients():
            size = len(batch["labels"])
            loss(logits, batch["labels"]).mean().backward()
            for name, layer in self.layers.items():
                assert layer.weight.grad is not None
                grad = (layer.weight.grad.t() if layer.transposed else layer.weight.grad).float()
                sums[name][0].add_(grad, alpha=size)
                sums[name][1].add_(grad.square(), alpha=size * size)
        return {name: (slope / self.examples, square / self.examples) for name, (slope, square) in sums.items()}

    def _matrices(self) -> dict[str, Tensor]:
        return {name: layer.matrix.detach().float() for name, layer in self.layers.items()}

    def _with_gradients(self) -> Iterator[tuple[Batch, Tensor]]:
        """Each batch and its logits, from which gradients reach the layers' weights; afterwards they are as before."""
        before = [(p, p.requires_grad, p.grad) for p in self.model.parameters()]
        weights = {id(layer.weight) for layer in self.layers.values()}
        for parameter, _, _ in before:
            parameter.requires_grad_(id(parameter) in weights)
            parameter.grad = None
        try:
            with evaluating(self.model), torch.enable_grad():
                for batch in self.batches:
                    yield batch, self.forward(batch).float()
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


def loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The loss of each example, (batch,): cross-entropy, or for a regression half the squared error, the negative log
    likelihood of a normal distribution of unit variance."""
    if logits.shape[-1] == 1:
        return 0.5 * (logits[:, 0] - labels.float()).square()
    return F.cross_entropy(logits, labels, reduction="none")


def _divergence(before: Tensor, after: Tensor) -> float:
    """Sum over the examples of a batch; in float64, as float32 leaves as much rounding as a good set does damage."""
    before, after = before.double(), after.double()
    if before.shape[-1] == 1:
        return 0.5 * (after - before).square().sum().item()
    return max(0.0, F.kl_div(after.log_softmax(-1), before.log_softmax(-1), reduction="sum", log_target=True).item())


def _zero_meaned(logits: Tensor) -> Tensor:
    """The logits of several outputs less their mean, of which no probability knows; a regression's as they are."""
    return logits - logits.mean(-1, keepdim=True) if logits.shape[-1] > 1 else logits
