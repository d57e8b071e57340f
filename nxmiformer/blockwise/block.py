"""What is done to one block: its layers reconstructed, and the block trained on its own output."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

from nxmiformer.blockwise.settings import Blockwise
from nxmiformer.layers.found import distinct_layers, linear_layers
from nxmiformer.layers.moments import input_moments
from nxmiformer.methods.base import Length
from nxmiformer.methods.fixed_mask import FixedMask
from nxmiformer.optim.reconstruct import Problem

Forward = Callable[[int, Tensor], Tensor]  # of a batch's number and its hidden states before the block, those after it
Read = Callable[[int], Tensor]  # of a batch's number, hidden states


class Tuned(NamedTuple):
    """The block's output before and after its training: ||output - target||^2 / ||target||^2 over all windows."""

    before: float
    after: float


def reconstruct(block: nn.Module, batches: int, read: Read, forward: Forward, settings: Blockwise) -> Iterator[tuple[str, float]]:
    """Move every compressed linear layer of the block, in place, to a point of its set that its output changes the
    least by on what goes into it while the others are dense. Yields each layer's name in the block, and the relative
    error of its output.

    Raises:
        ValueError: a layer's inputs or weight will not do; it is named.
    """
    if not linear_layers(block):
        return
    hidden = ({"hidden": read(number), "number": torch.tensor(number, device="cpu")} for number in range(batches))
    moments = input_moments(block, hidden, lambda each: forward(int(each["number"]), each["hidden"]))
    for name, layer in linear_layers(block).items():
        try:
            problem = Problem(layer.matrix.detach(), moments.pop(name), settings.damping)
            point = problem.point(layer.quantizer.constraint, settings.iterations)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        with torch.no_grad():
            layer.matrix.copy_(point)
        yield name, problem.error(point)


def tune(block: nn.Module, batches: int, read: Read, target: Read, forward: Forward, settings: Blockwise, seed: int) -> Tuned:
    """Train the block, from points of its sets to points of its sets, on the mean squared error of its output; where
    that is no less on all windows afterwards, the block is as it was.

    Args:
        target: the output that the dense block has on the dense block's inputs.
        seed: of the order of the batches.
    """
    before = output_error(block, batches, read, target, forward)
    kept = {name: parameter.detach().clone() for name, parameter in block.named_parameters()}
    method = FixedMask()
    method.attach(block, Length(settings.steps, settings.steps))
    block.requires_grad_(True)
    optimizer = method.optimizer(torch.optim.Adam([p for _, p in method.parameters()], lr=settings.lr))
    schedule = LambdaLR(optimizer, lambda step: 1 - step / settings.steps)
    generator = torch.Generator(device="cpu").manual_seed(seed)
    for step in range(settings.steps):
        number = int(torch.randint(batches, (), generator=generator, device="cpu"))
        method.before_step(step)
        wanted = target(number)
        loss = F.mse_loss(forward(number, read(number)).float(), wanted.float()) / wanted.float().square().mean()
        loss.backward()
        method.before_clip()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    block.requires_grad_(False)
    method.finalize()
    after = output_error(block, batches, read, target, forward)
    if not after < before:
        after = before
        with torch.no_grad():
            for name, parameter in block.named_parameters():
                parameter.copy_(kept[name])
    for layer in distinct_layers(block).values():
        layer.quantizer.reset()
    return Tuned(before, after)


@torch.no_grad()
def output_error(block: nn.Module, batches: int, read: Read, target: Read, forward: Forward) -> float:
    """||output - target||^2 / ||target||^2 of the block over all windows."""
    error = norm = 0.0
    for number in range(batches):
        wanted = target(number).double()
        error += (forward(number, read(number)).double() - wanted).square().sum().item()
        norm += wanted.square().sum().item()
    return error / norm if norm else 0.0
