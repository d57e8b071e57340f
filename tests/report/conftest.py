"""Fabricated runs, read."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fabricated import write_run

from nxmiformer.runs.numbers import Run, read_run


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Run]:
    """A function that writes a run (see `fabricated.write_run`) and reads it."""

    def build(**options: Any) -> Run:
        return read_run(write_run(tmp_path / "run", **options))

    return build
