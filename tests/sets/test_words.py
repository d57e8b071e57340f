import pytest
from hypothesis import given
from hypothesis import strategies as st

from nxmiformer.sets import NM, Block, Grid, Kronecker, QuantizedKronecker, Then, Unstructured
from nxmiformer.sets.words import from_words

sparsity = st.integers(1, 64).flatmap(lambda group: st.builds(NM, st.integers(1, group), st.just(group)))
share = st.integers(1, 10**6).map(lambda millionths: millionths / 10**6)
sparsity |= st.builds(Block, st.integers(1, 64), st.integers(1, 64), share)
sparsity |= st.builds(Unstructured, share, st.sampled_from(["bitmap", "entropy"]))
grids = st.builds(Grid, st.integers(1, 8), st.none() | st.integers(1, 4096))
products = st.builds(Kronecker, st.integers(1, 64), st.integers(1, 64), st.integers(1, 9))
products |= st.builds(QuantizedKronecker, st.integers(1, 64), st.integers(1, 64), st.integers(2, 8))


@given(sparsity | grids | st.builds(Then, sparsity, grids) | products)
def test_a_set_is_the_one_that_its_words_name(constraint):
    assert from_words(str(constraint)) == constraint


@pytest.mark.parametrize(
    "words",
    [
        *("", "+", "2:4+", "+int4", "int4+2:4", "2:4+2:4", "int4+int4", "2:4+int4+int4", "2x4", "int", "int4g", "INT4"),
        *(
            " int4",
            "int4 ",
            "2:4\n",
            "int-4",
            "50%",
            "bin8",
            "dense",
            "2:4 + int4",
            "kron2",
            "kron2x2r",
            "kron2x2r2+int8",
            "kron2x2+2:4",
            "8x8",
            "8x8@",
            "8@0.5",
            "0.5",
            "0.5dense+2:4",
        ),
    ],
)
def test_other_words_are_refused_with_examples(words):
    with pytest.raises(ValueError, match="is not a set: there are keep:group such as '2:4', 'int4', 'int4g64' and"):
        from_words(words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("5:4", "keep=5, group=4"),
        ("0:4", "keep=0"),
        ("32:128", "group=128"),
        ("int9", "bits=9"),
        ("int0", "bits=0"),
        ("int4g0", "group=0"),
        ("5:4+int4", "keep=5"),
        ("2:4+int9", "bits=9"),
        ("8x8@1.5", "density"),
        ("0x8@0.5", "not 0 x 8"),
        ("2dense", "density"),
        ("kron0x2", "not 0 x 2 and 1"),
        ("kron2x2+int1", "not 2 x 2 and bits=1"),
    ],
)
def test_words_of_a_set_that_cannot_be_are_refused_by_the_set(words, message):
    with pytest.raises(ValueError, match=message):
        from_words(words)
