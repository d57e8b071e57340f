"""What a block of code takes is what it holds at once."""

from pathlib import Path

import pytest
import torch

from nxmiformer.train import memory
from nxmiformer.train.memory import measuring

pytestmark = pytest.mark.skipif(not memory.PEAK.exists(), reason="this system does not tell the peak of a process")
MB = 10**6


def test_the_peak_is_what_was_held_at_once_and_is_forgotten_afterwards():
    with measuring(torch.device("cpu")) as large:
        held = torch.ones(200 * MB, dtype=torch.uint8, device="cpu")
        del held
    with measuring(torch.device("cpu")) as small:
        torch.ones(10, device="cpu")
    assert 190 * MB < large.taken < 300 * MB
    assert large.peak - large.before == large.taken
    assert small.taken < 50 * MB


def test_where_the_system_does_not_tell_nothing_is_believed(monkeypatch):
    monkeypatch.setattr(memory, "PEAK", Path("/nowhere/clear_refs"))
    with measuring(torch.device("cpu")) as found:
        pass
    assert (found.before, found.peak, found.taken) == (None, None, None)
