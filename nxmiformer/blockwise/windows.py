"""Which windows of text the blocks are calibrated on."""

from collections.abc import Sequence

import torch
from torch import Tensor

from nxmiformer.tasks.batches import Examples


def calibration(examples: Examples, tokens: int, windows: int, size: int, seed: int) -> list[Tensor]:
    """The tokens (windows, tokens) of batches of whole windows, drawn without regard to their order.

    Raises:
        ValueError: there are not so many whole windows.
    """
    whole = [number for number, length in enumerate(examples.lengths()) if length == tokens]
    if len(whole) < windows:
        raise ValueError(
            f"blockwise.windows={windows}: the training texts have {len(whole)} whole windows of "
            f"train.max_length={tokens} tokens: give fewer, shorter ones, or more text"
        )
    order = torch.randperm(len(whole), generator=torch.Generator(device="cpu").manual_seed(seed), device="cpu")
    drawn = [whole[number] for number in order[:windows].tolist()]
    return [_tokens(examples, drawn[first : first + size]) for first in range(0, windows, size)]


def _tokens(examples: Examples, numbers: Sequence[int]) -> Tensor:
    return torch.tensor([list(examples.features[number]["input_ids"]) for number in numbers], device="cpu")
