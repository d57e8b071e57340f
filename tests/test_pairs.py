"""The table of what goes with what is what was found, and what it says holds for some of each kind."""

import contextlib
import csv
import io
import runpy
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

ROOT = Path(__file__).parents[1]
SCRIPT = runpy.run_path(str(ROOT / "experiments" / "pairs" / "run.py"))
with SCRIPT["RESULTS"].open(newline="") as opened:
    FOUND = {(row["kind"], row["first"], row["second"]): row["found"] for row in csv.DictReader(opened)}
REFUSED = {SCRIPT["_short"](words): cell for cell, words in FOUND.items() if words != SCRIPT["YES"]}  # one of a kind
TAKEN = [("plan", "movement", "block"), ("phase", "obert", "admm"), ("phase", "movement", "kronecker")]


def test_every_pair_is_in_the_table_and_the_page_is_made_of_it():
    assert set(FOUND) == set(SCRIPT["cells"]())
    assert SCRIPT["TABLE"].read_text() == SCRIPT["page"](FOUND)


@pytest.mark.parametrize("cell", [*REFUSED.values(), *TAKEN], ids=" ".join)
def test_a_pair_is_taken_or_refused_as_the_table_says(cell):
    AcceleratorState._reset_state(True)
    with contextlib.redirect_stdout(io.StringIO()):
        assert SCRIPT["found"](SCRIPT["words_of"](*cell)) == FOUND[cell]
    AcceleratorState._reset_state(True)
