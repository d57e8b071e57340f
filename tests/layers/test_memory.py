import sys
import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nxmiformer.layers import memory
from nxmiformer.layers.memory import ALIGNMENT, Memory

CPU = torch.device("cpu")
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.int8]
shapes = st.tuples(st.integers(0, 40), st.integers(0, 40))


@given(st.lists(st.tuples(shapes, st.sampled_from(DTYPES)), max_size=20))
def test_tensors_share_no_byte_and_outlive_what_gave_them(asked: list[tuple[tuple[int, int], torch.dtype]]) -> None:
    source = Memory(CPU)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "BLOCK", 2**13)  # which a few of them fill
        tensors = [source.empty(*each) for each in asked]
    gone = weakref.ref(source)
    del source
    assert gone() is None
    for number, tensor in enumerate(tensors):
        tensor.fill_(number)
    for number, (tensor, (shape, dtype)) in enumerate(zip(tensors, asked, strict=True)):
        assert tensor.shape == shape
        assert tensor.dtype == dtype
        assert tensor.is_contiguous()
        assert (tensor == number).all()
        assert tensor.untyped_storage().nbytes() == tensor.numel() * dtype.itemsize
    first = [tensor.data_ptr() for tensor in tensors if tensor.numel()]
    assert len(set(first)) == len(first)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is mapped under Linux")
def test_a_block_that_is_full_is_followed_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "BLOCK", 4 * ALIGNMENT)
    source = Memory(CPU)
    sizes = [3, 3 * ALIGNMENT, ALIGNMENT, 100 * ALIGNMENT, 1, 2 * ALIGNMENT]
    tensors = [source.empty((size,), torch.uint8) for size in sizes]
    for number, tensor in enumerate(tensors):
        assert tensor.data_ptr() % ALIGNMENT == 0
        tensor.fill_(number)
    assert [(tensor == number).all().item() for number, tensor in enumerate(tensors)] == [True] * len(sizes)


def test_memory_of_a_device_is_on_it() -> None:
    assert Memory(torch.device("meta")).empty((2, 3), torch.float32).device.type == "meta"
