"""Settings for every test, and a second device to run on."""

import pytest
import torch
from devices import foreign
from hypothesis import settings

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

# Before the first backward pass, for which autograd starts a thread for each device that it knows. Not beside a GPU:
# torch would take it for the accelerator, in CUDA's place.
if not torch.cuda.is_available():
    foreign.register()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("cuda") and not torch.cuda.is_available():
        pytest.skip("needs a GPU with CUDA")
