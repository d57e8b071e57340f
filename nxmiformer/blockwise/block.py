"""What is done to one block: its layers reconstructed, and the block trained on its own output."""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

from nxmiformer.blockwise.settings import Blockwise
from nxmiformer.layers.found import distinct_layers, linear_layers
from nxmiformer.layers.linear import CompressedLinear
from nxmiformer.layers.moments import input_moments
from nxmiformer.methods.base import Length
from nxmiformer.methods.fixed_mask import FixedMask
from nxmiformer.optim.reconstruct import Problem

# A parameter's step is of its own size, and of this where that is less, as in Adafactor (Shazeer and Stern 2018, arXiv
# 1804.04235, section 8): blocks and models differ in theirs.
LEAST = 1e-3

Read = Callable[[int], Tensor]  # of a batch's number, hidden states


class Batches(NamedTuple):
    """What a block is worked on with.

    Attributes:
        number: of batches, which are numbered from 0.
        before: gives the hidden states (windows, tokens, width) of one before the block.
        wanted: gives those that the dense block makes of what comes into it in the dense model.
        forward: runs the block on a batch's number and hidden states.
    """

    number: int
    before: Read
    wanted: Read
    forward: Callable[[int, Tensor], Tensor]

    def output(self, number: int) -> Tensor:
        """What the block makes of a batch."""
        return self.forward(number, self.before(number))


class Tuned(NamedTuple):
    """The block's output before and after its training: ||output - wanted||^2 / ||wanted||^2 over all windows."""

    before: float
    after: float


def reconstruct(block: nn.Module, batches: Batches, settings: Blockwise) -> Iterator[tuple[str, float]]:
    """Move every compressed linear layer of the block, in place, to that point of its set where its output changes
    least.

    Its inputs are those that it has while the other layers are dense. Yields each layer's name in the block, and the
    relative error of its output.

    Raises:
        ValueError: a layer's inputs or weight will not do; it is named.
    """
    for name, layer, problem in problems(block, batches, settings.damping):
        try:
            point = problem.point(layer.quantizer.constraint, settings.iterations)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        with torch.no_grad():
            layer.matrix.copy_(point)
        yield name, problem.error(point)


def problems(block: nn.Module, batches: Batches, damping: float) -> Iterator[tuple[str, CompressedLinear, Problem]]:
    """Every compressed linear layer of the block by its name there, and its reconstruction from the inputs that it has
    while all layers are as they are at the start.

    Raises:
        ValueError: a layer's inputs or weight will not do; it is named.
    """
    if not linear_layers(block):
        return
    numbers = ({"number": torch.tensor(number, device="cpu")} for number in range(batches.number))
    moments = input_moments(block, numbers, lambda each: batches.output(int(each["number"])))
    moment: Tensor | None = None
    problem: Problem | None = None
    for name, layer in linear_layers(block).items():
        try:
            weight, last, moment = layer.matrix.detach(), moment, moments.pop(name)
            if problem is not None and last is not None and torch.equal(last, moment):  # query, key and value
                problem = problem.like(weight)
            else:
                problem = Problem(weight, moment, damping)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        yield name, layer, problem


def tune(block: nn.Module, batches: Batches, settings: Blockwise, seed: int) -> Tuned:
    """Train the block, from points of its sets to points of its sets, on the mean squared error of its output; where
    that is no less on all windows afterwards, the block is as it was. `seed` is that of the order of the batches."""
    before = output_error(batches)
    kept = {name: parameter.detach().clone() for name, parameter in block.named_parameters()}
    method = FixedMask()
    method.attach(block, Length(settings.steps, settings.steps))
    block.requires_grad_(True)
    rates = [{"params": [p], "lr": settings.lr * max(LEAST, _size(p))} for _, p in method.parameters()]
    optimizer = method.optimizer(torch.optim.Adam(rates))
    schedule = LambdaLR(optimizer, lambda step: 1 - step / settings.steps)
    generator = torch.Generator(device="cpu").manual_seed(seed)
    for step in range(settings.steps):
        number = int(torch.randint(batches.number, (), generator=generator, device="cpu"))
        method.before_step(step)
        wanted = batches.wanted(number)
        loss = F.mse_loss(batches.output(number).float(), wanted.float()) / wanted.float().square().mean()
        loss.backward()
        method.before_clip()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    block.requires_grad_(False)
    method.finalize()
    after = output_error(batches)
    if not after < before:
        after = before
        with torch.no_grad():
            for name, parameter in block.named_parameters():
                parameter.copy_(kept[name])
    for layer in distinct_layers(block).values():
        layer.quantizer.reset()
    return Tuned(before, after)


def _size(parameter: Tensor) -> float:
    """Its root mean square."""
    return parameter.detach().float().square().mean().sqrt().item()


@torch.no_grad()
def output_error(batches: Batches, outputs: Iterable[Tensor] | None = None) -> float:
    """||output - wanted||^2 / ||wanted||^2 of the block over these outputs of the first batches; None: those of all."""
    error = norm = 0.0
    for number, output in enumerate(map(batches.output, range(batches.number)) if outputs is None else outputs):
        wanted = batches.wanted(number).double()
        error += (output.double() - wanted).square().sum().item()
        norm += wanted.square().sum().item()
    return error / norm if norm else 0.0
