"""Many matrices at once: an accelerator takes those of one width and set, whose rows are matters of their own, as one.

That saves it hundreds of launches; on a CPU, which keeps no queue, each is taken alone.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from nxmiformer.sets.base import ConstraintSet, Piece

MOST = 2**26  # elements of a batch, so that what it needs besides the matrices stays small


class Asked(NamedTuple):
    """A matrix (out, in) that is to get a piece of a set, as `ConstraintSet.piece` takes it, or that has one."""

    constraint: ConstraintSet
    w: Tensor
    importance: Tensor | None = None
    piece: Piece = Piece()


def pieces(asked: Sequence[Asked], recover: bool = True) -> list[Piece]:
    """What `ConstraintSet.piece` gives for each, with the mask of its piece where there is one."""

    def choose(one: Asked) -> list[Tensor | None]:
        return list(one.constraint.piece(one.w, one.importance, one.piece.mask, recover))

    return [Piece(*parts) for parts in _batched(asked, choose)]


def points(asked: Sequence[Asked]) -> list[Tensor]:
    """What `ConstraintSet.apply` gives for each with its piece."""
    found = _batched(asked, lambda one: [one.constraint.apply(one.w, one.piece)])
    return [point for (point,) in found if point is not None]


def nearest(asked: Sequence[Asked]) -> list[Tensor]:
    """The point of its set nearest to each matrix, of which nothing is checked: see `ConstraintSet.piece` on
    `recover`."""
    return points([one._replace(piece=piece) for one, piece in zip(asked, pieces(asked, False), strict=True)])


def _batched(asked: Sequence[Asked], work: Callable[[Asked], list[Tensor | None]]) -> list[list[Tensor | None]]:
    """What `work` gives for each, done for batches of them; all that it gives has a row for each row of a matrix."""
    done: dict[int, list[Tensor | None]] = {}
    for batch in _batches(asked):
        if len(batch) == 1:
            done[batch[0]] = work(asked[batch[0]])
            continue
        ones, sizes = [asked[i] for i in batch], [len(asked[i].w) for i in batch]
        mask, scales = (_joined([one.piece[part] for one in ones]) for part in range(2))
        joined = Asked(
            ones[0].constraint,
            torch.cat([one.w for one in ones]),
            _joined([one.importance for one in ones]),
            Piece(mask, scales),
        )
        parts = [[None] * len(batch) if part is None else part.split(sizes) for part in work(joined)]
        done.update(zip(batch, map(list, zip(*parts, strict=True)), strict=True))
    return [done[i] for i in range(len(asked))]


def _batches(asked: Sequence[Asked]) -> Iterator[list[int]]:
    """Which matrices make each batch."""
    alike: dict[object, list[int]] = {}
    for i, one in enumerate(asked):
        if one.w.device.type == "cpu" or not one.constraint.rowwise:
            yield [i]
            continue
        given = tuple(part is None for part in (one.importance, *one.piece))
        alike.setdefault((one.constraint, one.w.shape[1], one.w.dtype, one.w.device, given), []).append(i)
    for same in alike.values():
        size = max(1, MOST // max(1, max(asked[i].w.numel() for i in same)))
        yield from (same[start : start + size] for start in range(0, len(same), size))


def _joined(parts: list[Tensor | None]) -> Tensor | None:
    """The parts that there are, one below the other; all are None or none is."""
    there = [part for part in parts if part is not None]
    return torch.cat(there) if there else None
