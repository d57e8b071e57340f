"""The code of a support: as long as is told in advance, near the entropy, bit-exact, and refused when it is damaged."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nxmiformer.sets import Unstructured
from nxmiformer.sets.entropy import decode, encode, nbytes


def support(keep, total, seed, kind="random"):
    mask, draw = np.zeros(total, dtype=bool), np.random.default_rng(seed)
    start = total - keep if kind == "last" else 0
    mask[draw.permutation(total)[:keep] if kind == "random" else slice(start, start + keep)] = True
    return mask


@settings(max_examples=30)
@given(
    total=st.integers(0, 1500), share=st.floats(0, 1), seed=st.integers(0, 99),
    kind=st.sampled_from(["random", "first", "last"]),
)  # fmt: skip
def test_a_mask_comes_back_bit_for_bit_from_as_many_bytes_as_were_told(total, share, seed, kind):
    keep = round(share * total)
    mask = support(keep, total, seed, kind)
    packed = encode(mask, keep)
    assert packed.size == nbytes(keep, total)
    assert np.array_equal(decode(packed, keep, total), mask)


@pytest.mark.parametrize("density", [0.5, 0.2, 0.1, 0.05])
@pytest.mark.parametrize("shape", [(384, 384), (768, 768), (3072, 768)])
def test_the_length_is_within_three_hundredths_of_the_entropy(density, shape):
    total = shape[0] * shape[1]
    entropy = -density * math.log2(density) - (1 - density) * math.log2(1 - density)
    points = Unstructured(density, "entropy")
    assert entropy <= points.index_bits(shape) / total <= 1.03 * entropy
    assert points.index_bits(shape) == 8 * nbytes(points.kept(shape), total)


@settings(max_examples=30)
@given(data=st.data(), seed=st.integers(0, 20))
def test_a_damaged_code_is_refused_or_is_that_of_another_mask(data, seed):
    mask = support(60, 900, seed)
    packed = encode(mask, 60)
    place = data.draw(st.integers(0, packed.size - 1))
    packed[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ValueError, match="the indices are damaged: they are not a code of 60 of 900"):
        decode(packed, 60, 900)


def test_another_coding_is_refused_and_the_shape_of_the_code_is_checked():
    with pytest.raises(ValueError, match="unknown coding of an unstructured support 'entrop': did you mean entropy"):
        Unstructured(0.1, "entrop")
    points = Unstructured(0.1, "entropy")
    packed = points.pack(points.project(torch.randn(16, 32, generator=torch.Generator().manual_seed(0))))
    with pytest.raises(ValueError, match="'indices' should be"):
        points.unpack({**packed, "indices": packed["indices"][1:]}, (16, 32))
