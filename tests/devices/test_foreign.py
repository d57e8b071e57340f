"""The second device does what CUDA does: it computes, and refuses to compute with what is on the CPU."""

import copy
import io

import pytest
import torch
from devices import foreign
from devices.foreign import here, there
from torch import nn

from nxmiformer.layers.weights import WeightQuantizer
from nxmiformer.sets import NM, Piece

MIXED = {
    "a sum": lambda x, cpu: x + cpu,
    "a sum the other way round": lambda x, cpu: cpu + x,
    "a number from the device": lambda x, cpu: cpu + x.sum(),
    "a product": lambda x, cpu: x @ cpu.t(),
    "a concatenation": lambda x, cpu: torch.cat([x, cpu]),
    "numbers in a stack": lambda x, cpu: torch.stack([x.sum(), cpu.sum()]),
    "a choice": lambda x, cpu: torch.where(cpu > 0, x, 0),
    "a result on the CPU": lambda x, cpu: cpu.sum().add_(x.sum()),
    "an output on the CPU": lambda x, cpu: torch.add(x, x, out=cpu),
    "rows looked up there by numbers from here": lambda x, cpu: nn.functional.embedding(cpu.long(), x),
    "rows taken here by numbers from there": lambda x, cpu: cpu[x[0].long()],
    "rows put here": lambda x, cpu: cpu.index_copy_(0, torch.tensor([0, 1, 2]), x),
    "values put there": lambda x, cpu: x.index_put_((torch.tensor([0]),), cpu[0]),
    "a generator of the CPU": lambda x, cpu: torch.randn(3, generator=torch.Generator(), device=x.device),
    "an order from a generator of the CPU": lambda x, cpu: torch.randperm(
        3, generator=torch.Generator(), device=x.device
    ),
    "a layer left on the CPU": lambda x, cpu: nn.Linear(4, 4)(x),
    "a tensor that numpy is to read": lambda x, cpu: x.numpy(),
}
ALIKE = {
    "a sum": lambda x: x + x,
    "a number from the CPU": lambda x: x * torch.tensor(2.0),
    "a number in a choice": lambda x: torch.where(x > 0, x, torch.tensor(0.5)),
    "rows by numbers from the CPU": lambda x: x[torch.tensor([2, 0])],
    "a mask from the CPU": lambda x: x[torch.tensor([True, False, True])],
    "in place": lambda x: x.clone().mul_(3).add_(x),
    "a part in place": lambda x: _first_row_of_ones(x),
    "an output": lambda x: torch.add(x, x, out=torch.empty_like(x)),
    "other bits": lambda x: x.view(torch.int32),
    "several results": lambda x: torch.linalg.eigh(x @ x.t()).eigenvalues,
    "new": lambda x: torch.full((2, 3), 1.5, device=x.device),
    "from a list": lambda x: torch.tensor([[1.0, 2.0]], device=x.device),
    "copied there": lambda x: torch.zeros_like(x).copy_(torch.ones(3, 4)),
    "a product under autocast": lambda x: _product_under_autocast(x),
}


def _first_row_of_ones(x):
    changed = x.clone()
    changed[0] = 1
    return changed


def _product_under_autocast(x):
    with torch.autocast(x.device.type, enabled=False):
        return x @ x.t()


@pytest.fixture
def x():
    return torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("mix", MIXED.values(), ids=MIXED)
def test_what_is_on_two_devices_at_once_fails(x, mix):
    with pytest.raises((RuntimeError, TypeError)):
        mix(there(x), x.abs())


@pytest.mark.parametrize("compute", ALIKE.values(), ids=ALIKE)
def test_what_is_on_one_device_alone_has_the_bits_of_the_cpu(x, compute):
    found = compute(there(x))
    assert found.device == foreign.DEVICE
    assert torch.equal(found.cpu(), compute(x))


def test_numbers_and_lists_come_back_and_a_saved_tensor_is_read_on_the_cpu(x):
    moved = there(x)
    assert moved.sum().item() == x.sum().item()
    assert moved.tolist() == x.tolist()
    file = io.BytesIO()
    torch.save({"x": moved}, file)
    file.seek(0)
    read = torch.load(file, map_location="cpu", weights_only=True)["x"]
    assert read.device.type == "cpu"
    assert torch.equal(read, x)
    assert torch.equal(copy.deepcopy(moved).cpu(), x)


def test_a_moved_module_keeps_its_parameters_their_ties_and_trains_as_on_the_cpu(x):
    torch.manual_seed(0)
    twin = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    twin[2].weight = twin[0].weight
    model = copy.deepcopy(twin)
    weight = model[0].weight
    model.to(foreign.DEVICE)
    assert model[0].weight is weight is model[2].weight
    for each, given in ((model, there(x)), (twin, x)):
        optimizer = torch.optim.AdamW(each.parameters(), lr=0.1)
        each(given).square().sum().backward()
        nn.utils.clip_grad_norm_(each.parameters(), 0.5)
        optimizer.step()
    assert all(torch.equal(here(p.detach()), q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))


def test_nobody_takes_the_device_unasked():
    assert not torch.accelerator.is_available()
    assert nn.Linear(2, 2).weight.device.type == "cpu"


def test_a_quantizer_whose_piece_was_left_on_the_cpu_fails(x):
    quantizer = WeightQuantizer(NM(2, 4))
    quantizer.seen = NM(2, 4)
    quantizer.hold(Piece(mask=NM(2, 4).mask(x)))
    with pytest.raises(RuntimeError, match="expected all tensors to be on the same device"):
        quantizer(there(x))
