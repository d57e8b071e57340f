"""What the candidate sets of each layer would do to a decoder, found in one passage through its dense blocks.

What is done lies in the directory: `NUMBER.json` of each block, and `activations/`, the hidden states before the next
one. Each file is whole or not there, so that a survey goes on at the block where it was stopped.
"""

import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nxmiformer.blockwise.block import Batches, output_error, problems
from nxmiformer.blockwise.decoder import Decoder
from nxmiformer.blockwise.flow import Flow
from nxmiformer.blockwise.passage import ACTIVATIONS
from nxmiformer.blockwise.settings import Blockwise
from nxmiformer.blockwise.stored import Stored
from nxmiformer.files import tidy, write_text
from nxmiformer.layers.found import linear_layers
from nxmiformer.sets import ConstraintSet
from nxmiformer.tasks.outcomes import Classes

SEEN = 8  # batches on which changes are measured, at most; the moments are of all
ROWS = 64  # tokens of a batch whose logits are compared, at most; as many parts of them are compared one by one
FINISHED = "divergences.json"

Sets = Mapping[str, Sequence[ConstraintSet]]  # by layer


class Survey:
    """Predicts the damage of each layer in each of its candidate sets, before anything is compressed.

    A layer is reconstructed in the set, while all others are dense. The change of its block's output, relative to it,
    tells candidates and layers of the block apart. What a change of this block's output does to the model is measured
    once: with all its layers in their anchors, the windows go on through the dense blocks behind it, and the
    divergence of the logits over the relative change is the block's gain. A damage is a change times the gain, so that
    it can be added up over layers and blocks.

    Args:
        decoder: its layers are converted, under whatever plan.
        dense: the tensors of the dense model.
        ids: the tokens of each batch of calibration windows, (windows, tokens), of one length.
        candidates: the sets of each layer, by its name.
        anchors: one of the sets of each.
        iterations: of each stage of a layer's reconstruction; 0 takes the plain projection.
    """

    def __init__(
        self,
        decoder: Decoder,
        dense: Stored,
        ids: Sequence[Tensor],
        settings: Blockwise,
        candidates: Sets,
        anchors: Mapping[str, ConstraintSet],
        iterations: int,
        directory: Path,
    ) -> None:
        self.decoder, self.dense, self.settings, self.iterations = decoder, dense, settings, iterations
        self.candidates, self.anchors, self.directory = candidates, anchors, directory
        self.activations = directory / ACTIVATIONS
        self.exact = Flow(decoder, ids, self.activations, "dense", quantized=False)
        blocks = range(len(decoder.blocks))
        self.changed = [Flow(decoder, ids[:SEEN], self.activations, f"anchor-{each:04d}", False) for each in blocks]

    @property
    def done(self) -> int:
        """Blocks that have been looked at, with the hidden states to go on with."""
        every = range(len(self.decoder.blocks))
        done = next((index for index in every if not self._file(index).is_file()), len(every))
        return done if all(flow.at(done).path.is_file() for flow in self.changed[:done]) else 0

    def run(self) -> Iterator[int]:
        """Look at all blocks that are still to be; gives each one's number."""
        if not (self.directory / FINISHED).is_file():
            yield from self._blocks()
        shutil.rmtree(self.activations, ignore_errors=True)

    def _blocks(self) -> Iterator[int]:
        self.activations.mkdir(parents=True, exist_ok=True)
        for directory in (self.directory, self.activations):
            tidy(directory)
        done = self.done
        with self.decoder.loaded(None, self.dense):
            self.decoder.look(self.exact.ids[0], self.dense)
            self.exact.learn_calls()
        for flow in self.changed:
            flow.calls = self.exact.calls
        self.exact.catch_up(done, [self.dense] * (1 + done))
        for index in range(done, len(self.decoder.blocks)):
            self._look(index)
            yield index
        write_text(self.directory / FINISHED, json.dumps(self._divergences()) + "\n")

    def damages(self) -> dict[str, dict[str, float]]:
        """By layer and set in words, once `run` has ended."""
        found = {}
        for index, divergence in enumerate(json.loads((self.directory / FINISHED).read_text())):
            content = self._content(index)
            gain = divergence / content["anchor"] if content["anchor"] else 0.0
            for layer, changes in content["changes"].items():
                found[layer] = {words: gain * change for words, change in changes.items()}
        return found

    def _file(self, index: int) -> Path:
        return self.directory / f"{index:04d}.json"

    def _content(self, index: int) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self._file(index).read_text())
        return content

    def _look(self, index: int) -> None:
        """Measure the sets of a block's layers, and take the windows through it: as they are, and as the anchors of
        the blocks before it have left them."""
        began = time.perf_counter()
        before, device = self.exact.at(index), self.decoder.device
        with self.decoder.loaded(index, self.dense):
            self.exact.advance(index)
            for flow in self.changed[:index]:
                flow.advance(index)
            batches = Batches(
                len(before),
                lambda number: before.read(number, device),
                lambda number: self.exact.at(index + 1).read(number, device),
                lambda number, hidden: self.exact.through(index, number, hidden),
            )
            changes = self._changes(index, batches)
            anchor = output_error(batches, self._take(index, batches))
        found = {"changes": changes, "anchor": anchor, "seconds": time.perf_counter() - began}
        write_text(self._file(index), json.dumps(found) + "\n")
        for flow in (self.exact, *self.changed[:index]):
            flow.forget(index + 1)

    @torch.no_grad()
    def _changes(self, index: int, batches: Batches) -> dict[str, dict[str, float]]:
        """The relative change of the block's output with a layer in each of its sets. Layers end in their anchors."""
        block, start = self.decoder.blocks[index], f"{self.decoder.name}.{index}."
        found: dict[str, dict[str, float]] = {}
        anchors: dict[str, dict[str, Tensor]] = {}  # packed, they take the bits that they are worth
        for name, layer, problem in problems(block, batches, self.settings.damping):
            layer_name = f"{start}{name}"
            if not self.candidates.get(layer_name):
                continue
            weight, anchor = layer.matrix.clone(), self.anchors[layer_name]
            found[layer_name] = {}
            for each in self.candidates[layer_name]:
                try:
                    point = problem.point(each, self.iterations) if self.iterations else each.project(problem.weight)
                except ValueError as error:
                    raise ValueError(f"{layer_name}: {error}") from error
                if each == anchor:
                    anchors[name] = each.pack(point.cpu())
                layer.matrix.copy_(point)
                found[layer_name][str(each)] = output_error(batches, map(batches.output, range(self._seen(batches))))
                layer.matrix.copy_(weight)  # which the problem looks at
        for name, packed in anchors.items():
            layer = linear_layers(block)[name]
            rows, columns = layer.matrix.shape
            layer.matrix.copy_(self.anchors[f"{start}{name}"].unpack(packed, (rows, columns), layer.matrix.dtype))
        return found

    def _seen(self, batches: Batches) -> int:
        return min(SEEN, batches.number)

    @torch.no_grad()
    def _take(self, index: int, batches: Batches) -> Iterator[Tensor]:
        """What the block in its anchors makes of the first batches, which is kept."""
        with self.changed[index].at(index + 1).written() as writer:
            for number in range(self._seen(batches)):
                hidden = batches.output(number)
                writer.take(hidden)
                yield hidden

    @torch.no_grad()
    def _divergences(self) -> list[float]:
        """KL(dense || with a block in its anchors) by block, the mean over tokens."""
        last, totals, tokens = len(self.decoder.blocks), [0.0] * len(self.decoder.blocks), 0
        with self.decoder.loaded(None, self.dense):
            for number in range(len(self.changed[0].ids)):
                exact = self._logits(self.exact, number, last)
                tokens += len(exact)
                for index, flow in enumerate(self.changed):
                    totals[index] += _divergence(exact, self._logits(flow, number, last))
        return [total / tokens for total in totals]

    def _logits(self, flow: Flow, number: int, last: int) -> Tensor:
        """The logits (tokens, words) of some tokens of a batch, evenly apart."""
        hidden = flow.at(last).read(number, self.decoder.device)
        logits: Tensor = self.decoder.seen(flow.ids[number], hidden).outputs["logits"].flatten(0, 1)
        kept = torch.linspace(0, len(logits) - 1, min(ROWS, len(logits)), device=logits.device).round().long()
        return logits[kept]


def _divergence(exact: Tensor, changed: Tensor) -> float:
    """KL(exact || changed), summed over rows of logits; in float64, and so a few rows at a time."""
    rows = 1 + len(exact) // ROWS
    pairs = zip(exact.split(rows), changed.split(rows), strict=True)
    return sum(Classes().divergences(one.double(), other.double()).sum().item() for one, other in pairs)
