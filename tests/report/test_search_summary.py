"""What the console shows of a search, on 80 columns."""

import pytest
from rich.console import Console

from nxmiformer.report.table import search_summary


def plan(name, divergence, trials=()):
    figures = {"bits": 999_999_999, "predicted": 1.9e-12, "divergence": divergence, "score": -0.66666}
    return {"name": name, **figures, "trials": [list(each) for each in trials]}


def shown(plans):
    console = Console(width=80, color_system=None)
    with console.capture() as capture:
        console.print(
            search_summary({"best": plans[0], "plans": plans, "budget": 10**9, "task": {"metric": "matthews_corrcoef"}})
        )
    return capture.get()


@pytest.mark.parametrize("trials", [(), ((20, 0.51), (40, 0.987654))])
def test_names_of_plans_stay_whole_and_every_line_fits(trials):
    names = ["knapsack 12", "uniform 1:4+int4", "uniform 4:8+int8"]
    text = shown([plan(name, 1.23e-5, trials) for name in names])
    assert all(name in text for name in names)
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("125 MB") == 3 + 2  # those of the headline too
    assert all(text.count(number) >= 3 for number in ("1.9e-12", "1.2e-05", "−66.67 %"))


def test_the_last_trial_is_shown_where_there_are_any():
    first, second = plan("a", 1.0, [(20, 0.5), (40, 0.75)]), plan("b", 1.0)
    text = shown([first, second])
    assert "75.00 % (40)" in text
    assert "50.00 %" not in text
    assert "trained" not in shown([second])


@pytest.mark.parametrize(
    ("best", "others", "claimed"),
    [
        (plan("knapsack 1", 1.0), [plan("uniform int8", 3.0), plan("uniform int4", 2.0)], "2.0 times closer"),
        (plan("knapsack 1", 2.0), [plan("uniform int8", 1.0)], None),
        (plan("uniform int8", 1.0), [plan("knapsack 1", 2.0), plan("uniform int4", 2.0)], None),
        (plan("knapsack 1", 0.0), [plan("uniform int8", 1.0)], None),
        (plan("knapsack 1", 1.0), [], None),
    ],
)
def test_the_headline_claims_no_more_than_was_found(best, others, claimed):
    text = shown([best, *others])
    assert ("times closer" in text) == (claimed is not None)
    assert claimed is None or claimed in text
