"""The laws of this directory are about a second device that a machine with a GPU does without."""

import pytest
from devices import foreign


@pytest.fixture(autouse=True)
def _second_device():
    if not foreign.registered():
        pytest.skip("there is a GPU: `make gpu` runs the project on it")
