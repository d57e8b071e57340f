"""Windows of tokens on their way through the blocks: on disk before each, and read batch by batch."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from nxmiformer.blockwise.activations import Activations
from nxmiformer.blockwise.decoder import Call, Decoder
from nxmiformer.blockwise.stored import Stored


class Flow:
    """The hidden states of batches of windows before a block, in the file `NAME-NUMBER`, by the block's number.

    Args:
        ids: the tokens of each batch, (windows, tokens).
        quantized: whether layers quantize their inputs, as those of compressed blocks do.
    """

    def __init__(self, decoder: Decoder, ids: Sequence[Tensor], directory: Path, name: str, quantized: bool) -> None:
        self.decoder, self.ids, self.directory, self.name, self.quantized = decoder, ids, directory, name, quantized
        self.calls: dict[tuple[int, ...], list[Call]] = {}

    def at(self, index: int) -> Activations:
        """The hidden states before a block; those after the last are before the one that would come next."""
        shapes = [(*each.shape, self.decoder.embedding[1]) for each in self.ids]
        return Activations(self.directory / f"{self.name}-{index:04d}", shapes, self.decoder.model.dtype)

    def reached(self, most: int) -> int | None:
        """The last block, up to `most`, that the hidden states before are there of."""
        return next((index for index in range(most, -1, -1) if self.at(index).path.is_file()), None)

    def learn_calls(self) -> None:
        """Find out what blocks are called with. All that is in no block is loaded."""
        for each in self.ids:
            if tuple(each.shape) not in self.calls:
                self.calls[tuple(each.shape)] = self.decoder.seen(each).calls

    def begin(self) -> None:
        """Write the hidden states before the first block. All that is in no block is loaded."""
        with self.at(0).written() as writer:
            for each in self.ids:
                writer.take(self.decoder.seen(each).hidden)

    def through(self, index: int, number: int, hidden: Tensor) -> Tensor:
        """What a block that is loaded makes of the hidden states of a batch."""
        return self.calls[tuple(self.ids[number].shape)][index](self.decoder.blocks[index], hidden)

    @torch.no_grad()
    def advance(self, index: int) -> None:
        """Take all windows through a block, which is loaded; what came in is kept, until `forget`."""
        before, device = self.at(index), self.decoder.device
        self.decoder.quantize_inputs(self.quantized, self.decoder.blocks[index])
        with self.at(index + 1).written() as writer:
            for number in range(len(before)):
                writer.take(self.through(index, number, before.read(number, device)))

    def catch_up(self, index: int, stored: Sequence[Stored]) -> None:
        """Have the hidden states before a block: from the last ones that are there, or from the beginning.

        Args:
            stored: what is in no block, and then each block before this one.
        """
        at = self.reached(index)
        if at is None:
            with self.decoder.loaded(None, stored[0]):
                self.begin()
            at = 0
        for each in range(at, index):
            with self.decoder.loaded(each, stored[1 + each]):
                self.advance(each)
            self.forget(each + 1)

    def forget(self, before: int) -> None:
        """Remove the hidden states before all earlier blocks."""
        for index in range(before):
            self.at(index).path.unlink(missing_ok=True)
