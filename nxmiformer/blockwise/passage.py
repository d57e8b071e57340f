"""The way through a decoder: each block compressed on what the compressed ones before it put out, and packed.

What is done lies in the directory: `blocks/NUMBER.safetensors`, the tensors of a block as the packed model has them,
and `activations/`, the hidden states before the next one. Each file is whole or not there, so that a passage goes on
at the block where it was stopped, with the same bits.
"""

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nxmiformer.applied.convert import matrix
from nxmiformer.blockwise.block import Batches, reconstruct, tune
from nxmiformer.blockwise.decoder import Decoder
from nxmiformer.blockwise.flow import Flow
from nxmiformer.blockwise.settings import Blockwise
from nxmiformer.blockwise.stored import Packed, Stored
from nxmiformer.export.joined import metadata, write
from nxmiformer.export.weights import PARTS
from nxmiformer.files import tidy, whole

BLOCKS, ACTIVATIONS = "blocks", "activations"


class Passage:
    """See the module.

    Args:
        dense: the tensors of the dense model.
        ids: the tokens of each batch of calibration windows, (windows, tokens), of one length.
        seed: of the order in which a block sees them when it trains.
    """

    def __init__(
        self, decoder: Decoder, dense: Stored, ids: Sequence[Tensor], settings: Blockwise, directory: Path, seed: int
    ) -> None:
        self.decoder, self.dense, self.settings, self.seed = decoder, dense, settings, seed
        self.blocks, self.activations = directory / BLOCKS, directory / ACTIVATIONS
        self.compressed = Flow(decoder, ids, self.activations, "compressed", quantized=True)
        self.exact = Flow(decoder, ids, self.activations, "dense", quantized=False)

    @property
    def files(self) -> list[Path]:
        """What is in no block, and each block, as they are packed."""
        return [self.file(index) for index in (None, *range(len(self.decoder.blocks)))]

    def file(self, index: int | None) -> Path:
        """The packed tensors of a block, or of all that is in none."""
        return self.blocks / f"{'around' if index is None else f'{index:04d}'}.safetensors"

    @property
    def done(self) -> int:
        """Blocks that are packed already."""
        there = (index for index in range(len(self.decoder.blocks)) if not self.file(index).is_file())
        return next(there, len(self.decoder.blocks))

    def run(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Compress all blocks that are still to be; gives each one's number and what was found."""
        for directory in (self.blocks, self.activations):
            directory.mkdir(parents=True, exist_ok=True)
            tidy(directory)
        if not self.file(None).is_file():
            self._around()
        done = self.done
        if done < len(self.decoder.blocks):
            self._begin(done)
        for index in range(done, len(self.decoder.blocks)):
            yield index, self._compress(index)
        shutil.rmtree(self.activations)

    def facts(self, index: int) -> dict[str, Any]:
        """What was found of a block that is packed: its layers' errors, its own, its seconds."""
        found: dict[str, Any] = json.loads(metadata(self.file(index))["facts"])
        return found

    def packed(self, index: int | None) -> Packed:
        """The packed tensors of a block, or of all that is in none, to be read."""
        return Packed(self.file(index), self.decoder.plan, self.decoder.model.dtype)

    def _around(self) -> None:
        """Pack what is in no block. Layers among it, embeddings and head, are projected onto their sets."""
        with self.decoder.loaded(None, self.dense), torch.no_grad():
            for name in self.decoder.layers(None):
                spec = self.decoder.plan.layers[name]
                weight = matrix(self.decoder.model, name, spec)
                weight.copy_(spec.weight.project(weight))
            self._write(None, {})

    def _begin(self, done: int) -> None:
        """Have what blocks are called with, and the hidden states before the first one that is to be compressed."""
        with self.decoder.loaded(None, self.packed(None)):
            self.decoder.look(self.compressed.ids[0], self.dense)
            self.compressed.learn_calls()
        self.exact.calls = self.compressed.calls
        self.compressed.catch_up(done, [self.packed(each) for each in (None, *range(done))])
        if self.settings.steps:
            self.exact.catch_up(done, [self.dense] * (1 + done))

    def _compress(self, index: int) -> dict[str, Any]:
        """Compress and pack one block, and take the windows through it."""
        began = time.perf_counter()
        decoder, block, last = self.decoder, self.decoder.blocks[index], index + 1 == len(self.decoder.blocks)
        before, after, device = self.compressed.at(index), self.exact.at(index + 1), decoder.device
        batches = Batches(
            len(before),
            lambda number: before.read(number, device),
            lambda number: after.read(number, device),
            lambda number, hidden: self.compressed.through(index, number, hidden),
        )
        facts: dict[str, Any] = {}
        with decoder.loaded(index, self.dense):
            if self.settings.steps and not after.path.is_file():
                self.exact.advance(index)
            decoder.quantize_inputs(False, block)
            facts["layers"] = dict(reconstruct(block, batches, self.settings))
            if self.settings.steps and facts["layers"]:
                decoder.quantize_inputs(True, block)
                seed = self.seed * 1_000_003 + index
                facts["output"] = tune(block, batches, self.settings, seed)._asdict()
            facts["seconds"] = time.perf_counter() - began
            self._write(index, facts)
        if not last:
            with decoder.loaded(index, self.packed(index)):
                self.compressed.advance(index)
        self.compressed.forget(index + 1)
        self.exact.forget(index + 1)
        return facts

    def _write(self, index: int | None, facts: dict[str, Any]) -> None:
        """Write the packed tensors of what is loaded.

        Raises:
            ValueError: a weight is not a point of its set.
        """
        state, tensors = self.decoder.model.state_dict(), {}
        layers = set(self.decoder.layers(index))
        for name in self.decoder.tensors(index):
            layer = name.removesuffix(".weight")
            if layer not in layers or not name.endswith(".weight"):
                tensors[name] = state[name].detach().cpu().contiguous()
                continue
            spec = self.decoder.plan.layers[layer]
            weight = matrix(self.decoder.model, layer, spec).cpu()
            if not spec.weight.contains(weight):
                raise ValueError(f"{layer}: its weight is not in {spec.weight}")
            tensors |= {layer + PARTS[part]: tensor for part, tensor in spec.weight.pack(weight).items()}
        with whole(self.file(index)) as new:
            write(tensors, new, {"facts": json.dumps(facts)})
