"""One file of tensors out of several is the file that safetensors writes for all of them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from nxmiformer.export.joined import entries, join, metadata, read, write

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.uint8, torch.int8, torch.int16]
DTYPES += [torch.int32, torch.int64, torch.bool]
TENSORS = st.dictionaries(
    st.text("ab.é_0", min_size=1, max_size=6),
    st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 3), max_size=3), st.integers(0, 2)),
    max_size=8,
)


@settings(max_examples=30)
@given(tensors=TENSORS)
def test_the_bytes_of_joined_or_written_files_are_those_of_one_file_of_all_tensors(tensors, tmp_path_factory):
    place = tmp_path_factory.mktemp("joined")
    made = {name: (torch.rand(shape) * 100).to(dtype) for name, (dtype, shape, _) in tensors.items()}
    files = [place / str(number) for number in range(3)]
    for number, file in enumerate(files):
        save_file({name: made[name] for name, (*_, where) in tensors.items() if where == number}, file)
    save_file(made, place / "whole", metadata={"format": "pt"})
    join(files, place / "joined", {"format": "pt"})
    write(made, place / "written", {"format": "pt"})
    for name in ("joined", "written"):
        assert (place / name).read_bytes() == (place / "whole").read_bytes()
    found = entries(place / "joined")
    assert found.keys() == made.keys()
    for name, entry in found.items():
        assert torch.equal(read(entry), made[name])
        assert torch.equal(read(entry, torch.float64), made[name].double())
    assert metadata(place / "joined") == {"format": "pt"}


def test_a_name_in_two_files_is_refused(tmp_path):
    for name in ("one", "two"):
        save_file({"weight": torch.zeros(2)}, tmp_path / name)
    with pytest.raises(ValueError, match=r"weight is in .*one and in .*two"):
        join([tmp_path / "one", tmp_path / "two"], tmp_path / "both", {})


@pytest.mark.parametrize("change", [lambda data: data[:-3], lambda data: data + b"\0"])
def test_a_file_that_is_cut_short_or_too_long_is_refused(tmp_path, change):
    file = tmp_path / "a.safetensors"
    save_file({"w": torch.ones(4, device="cpu")}, file)
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(ValueError, match="is damaged: it has other bytes than its header names"):
        entries(file)
