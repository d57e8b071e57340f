"""Codes that are looked up a group at a time, against placing them one by one."""

from itertools import combinations, product

import pytest
import torch

from nxmiformer.sets import NM, Block, Grid, Then
from nxmiformer.sets.base import SparsitySet
from nxmiformer.sets.bits import pack_bits
from nxmiformer.sets.lookup import look_up
from nxmiformer.sets.nm import Coding

SHORT = [(1, 2, 4), (1, 4, 4), (1, 4, 8), (2, 4, 1), (2, 4, 2), (2, 4, 3), (2, 4, 4), (1, 8, 4), (1, 8, 8)]


@pytest.mark.parametrize("coding", ["hardware", "dense"])
@pytest.mark.parametrize(("keep", "group", "bits"), SHORT)
def test_every_case_of_a_group_is_looked_up_as_it_was_packed(keep: int, group: int, bits: int, coding: Coding) -> None:
    first, second = NM(keep, group, coding), Grid(bits)
    codes = [-1, 1] if bits == 1 else range(-second.top, second.top + 1)
    cases = list(product(combinations(range(group), keep), product(codes, repeat=keep)))
    support, expected = (torch.zeros(len(cases), group, dtype=dtype) for dtype in (torch.bool, torch.int8))
    for row, (positions, values) in enumerate(cases):
        support[row, list(positions)] = True
        expected[row, list(positions)] = torch.tensor(values, dtype=torch.int8)
    kept = expected[support].int()
    packed = {"values": pack_bits(kept > 0 if bits == 1 else kept + second.top, bits), **first.pack_mask(support)}
    found = look_up(first, second, packed, (len(cases), group))
    assert found is not None
    assert torch.equal(found, expected)


def test_a_case_that_no_group_has_is_left_to_who_can_say_what_is_wrong() -> None:
    first, second = NM(2, 4), Grid(4)
    w = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    both = Then(first, second)
    good = both.pack(both.project(w))
    for key, said in {"values": "codes above 14", "indices": "ascending positions"}.items():
        bad = {**good, key: good[key].clone()}
        bad[key][3] = 255
        assert look_up(first, second, bad, (8, 16)) is None
        with pytest.raises(ValueError, match=said):
            both.unpack(bad, (8, 16))


@pytest.mark.parametrize("first", [NM(2, 4), NM(4, 8), NM(3, 5), NM(4, 4), Block(4, 4, 0.5)], ids=str)
def test_sets_of_too_many_cases_are_not_looked_up(first: SparsitySet) -> None:
    both = Then(first, Grid(8))
    w = both.project(torch.randn(20, 40, generator=torch.Generator().manual_seed(0)))
    packed = both.pack(w)
    assert look_up(first, Grid(8), packed, (20, 40)) is None
    assert torch.equal(both.unpack(packed, (20, 40)), w)
