"""The score of a decoder on text, block by block: no more of it is loaded than one block, or what is in none."""

from collections.abc import Callable
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

from nxmiformer.blockwise.decoder import Decoder
from nxmiformer.blockwise.flow import Flow
from nxmiformer.blockwise.stored import Stored
from nxmiformer.tasks.batches import Examples
from nxmiformer.tasks.task import Task


@torch.no_grad()
def score(
    decoder: Decoder,
    stored: Stored,
    task: Task,
    examples: Examples,
    size: int,
    directory: Path,
    quantized: bool,
    passed: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """What `task` makes of the model's answers.

    Args:
        stored: all its tensors.
        size: windows of a batch, which are of one length, so that none is padded.
        directory: where the hidden states are meanwhile.
        quantized: whether the layers quantize their inputs.
        passed: is called after each block.
    """
    directory.mkdir(parents=True, exist_ok=True)
    numbers = batches(examples.lengths(), size)
    whole = [_cut(examples.batch(each, decoder.device), examples.lengths()[each[0]]) for each in numbers]
    flow = Flow(decoder, [each["input_ids"] for each in whole], directory, "scored", quantized)
    with decoder.loaded(None, stored):
        decoder.look(flow.ids[0], stored)
        flow.learn_calls()
        flow.begin()
    for index in range(len(decoder.blocks)):
        with decoder.loaded(index, stored):
            flow.advance(index)
        flow.forget(index + 1)
        passed()
    last, answers = flow.at(len(decoder.blocks)), []
    with decoder.loaded(None, stored):
        for number, batch in enumerate(whole):
            outputs = decoder.seen(batch["input_ids"], last.read(number, decoder.device)).outputs
            answers += task.answers(task.units(outputs, batch), batch)
    flow.forget(len(decoder.blocks) + 1)
    return task.score(answers, examples.truths)


def batches(lengths: list[int], size: int) -> list[list[int]]:
    """The numbers of consecutive examples of one length, at most `size` at a time."""
    found = []
    for _, group in groupby(range(len(lengths)), key=lengths.__getitem__):
        same = list(group)
        found += [same[first : first + size] for first in range(0, len(same), size)]
    return found


def _cut(batch: dict[str, Tensor], length: int) -> dict[str, Tensor]:
    """The batch without what its rows were padded with."""
    return {name: rows[:, :length] for name, rows in batch.items()}
