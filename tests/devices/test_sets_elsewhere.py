"""What a set gives of a weight on another device is on that device, and has the bits that it has on the CPU."""

import pytest
import torch
from devices.foreign import here, there
from every import SETS
from naive import same_bits
from torch.utils import _pytree as pytree

from nxmiformer.sets import NM, Grid, SparsitySet, Then, Transposed, Unstructured
from nxmiformer.sets.batch import Asked, nearest, pieces

SHAPE = (8, 64)


def draw(seed, shape=SHAPE):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def assert_same(found, expected):
    leaves, others = pytree.tree_leaves(here(found)), pytree.tree_leaves(expected)
    assert len(leaves) == len(others)
    for one, other in zip(leaves, others, strict=True):
        assert same_bits(one, other) if isinstance(one, torch.Tensor) else one == other


def worked(points, w, importance, numbers):
    """All that a set does with a weight, and with what it made of it."""
    piece = points.piece(w)
    point = points.apply(w, piece)
    parts = points.pack(point)
    yield from (piece, point, points.contains(point), parts)
    yield points.project(w, importance), points.piece(w, None, piece.mask)
    yield points.unpack(parts, tuple(w.shape), w.dtype)
    yield points.unpack_into(torch.empty(w.shape, dtype=w.dtype, device=w.device), parts)
    yield points.unpack_rows(parts, tuple(w.shape), numbers, w.dtype)
    if isinstance(points, SparsitySet):
        yield points.unpack_mask(parts, tuple(w.shape))


@pytest.mark.parametrize("points", [*SETS, Transposed(Then(NM(2, 4), Grid(4)))], ids=repr)
def test_every_set_does_elsewhere_what_it_does_on_the_cpu(points):
    shape = SHAPE[::-1] if isinstance(points, Transposed) else SHAPE
    given = (draw(0, shape), draw(1, shape).square(), torch.tensor([3, 0]))
    for found, expected in zip(worked(points, *there(given)), worked(points, *given), strict=True):
        assert_same(found, expected)


@pytest.mark.parametrize("points", [Grid(4), Grid(1), Then(NM(2, 4), Grid(3))], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_weights_of_other_types_too(points, dtype):
    w = draw(0).to(dtype)
    assert_same(points.project(there(w)), points.project(w))
    assert_same(points.pack(points.project(there(w))), points.pack(points.project(w)))


def test_a_matrix_without_elements_is_packed_where_it_is():
    w = torch.zeros(0, 8)
    assert_same(Grid(4).pack(Grid(4).project(there(w))), Grid(4).pack(w))


@pytest.mark.parametrize(
    "points", [Then(NM(2, 4), Grid(4)), NM(2, 4), Grid(1), Grid(4, group=16), Unstructured(0.5)], ids=str
)
@pytest.mark.parametrize("weighed", [False, True])
def test_many_matrices_at_once_get_what_each_gets_alone(points, weighed):
    weights = [draw(seed, shape) for seed, shape in enumerate([(8, 64), (16, 32), (4, 64), (8, 32)])]
    alone = [Asked(points, w, w.square() if weighed else None) for w in weights]
    asked = [one._replace(w=there(one.w), importance=there(one.importance)) for one in alone]
    chosen = pieces(asked)
    assert_same(chosen, [points.piece(one.w, one.importance) for one in alone])
    assert_same(nearest(asked), [points.project(one.w, one.importance) for one in alone])
    frozen = [one._replace(piece=piece) for one, piece in zip(asked, chosen, strict=True)]
    assert_same(
        pieces(frozen), [points.piece(one.w, one.importance, points.piece(one.w, one.importance).mask) for one in alone]
    )
