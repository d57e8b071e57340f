"""Runs that differ only in their seeds."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from nxmiformer.errors import unknown

SETTING = ("task", "model", "report_on")  # scores of different ones are not compared
LISTED = 3  # panels that a title names one by one
DISTINCT = ("phases", "fingerprint", "plan")  # columns, besides those of the configuration, that tell runs apart


@dataclass(frozen=True, eq=False)
class Group:
    """The runs (`rows` of a table such as `load_runs` gives) that go by one name."""

    name: str
    rows: pd.DataFrame

    def values(self, column: str) -> list[float]:
        """One of each run."""
        return [float(value) for value in self.rows[column]]

    def mean(self, column: str) -> float:
        """Over the runs."""
        return float(self.rows[column].mean())

    def deviation(self, column: str) -> float:
        """The standard deviation over the runs (n - 1); 0 for a single one."""
        return float(self.rows[column].std()) if len(self.rows) > 1 else 0.0


@dataclass(frozen=True, eq=False)
class Panel:
    """The groups of one task, model and split; `name` distinguishes it from the other panels, `metric` is its score."""

    name: str
    metric: str
    groups: tuple[Group, ...]

    def called(self, column: str) -> str:
        """What a column of scores holds: "one-shot pearson"."""
        return f"{column.replace('_', '-')} {self.metric}" if column != self.metric else column

    @property
    def dense(self) -> float:
        """The mean score of the dense models; their column `dense` must be there."""
        return float(pd.concat([group.rows for group in self.groups])["dense"].mean())

    @property
    def above_chance(self) -> bool:
        """Whether every dense model is, as far as it is known."""
        return not any(_no_better(group.rows) for group in self.groups)


def panels(frame: pd.DataFrame, by: str | Sequence[str], needed: Sequence[str]) -> list[Panel]:
    """The runs of `frame` that have a value in each `needed` column, grouped by the columns `by`; a panel a setting.

    Raises:
        ValueError: a column is missing, no run has the needed values, or a group has a seed twice, so that its runs
            differ in more than seeds.
    """
    keys = [by] if isinstance(by, str) else list(by)
    for column in ("task", "seed", *keys, *needed):
        if column not in frame:
            raise unknown("column", column, frame.columns)
    runs = frame.dropna(subset=list(needed))
    if runs.empty:
        raise ValueError(f"none of the {len(frame)} runs has a value in each of the columns {', '.join(needed)}")
    setting = [column for column in SETTING if column in runs]
    shown = [column for column in setting if column == "task" or runs[column].nunique(dropna=False) > 1]
    found = []
    for _, rows in runs.groupby(setting, sort=False, dropna=False):
        name = ", ".join(str(rows[column].iloc[0]) for column in shown)
        metric = str(rows["metric"].iloc[0]) if "metric" in rows else "score"
        found.append(Panel(name, metric, tuple(_groups(rows, keys))))
    return found


def _groups(rows: pd.DataFrame, keys: list[str]) -> list[Group]:
    groups = []
    for values, runs in rows.groupby(keys, sort=False, dropna=False):
        name = ", ".join(str(value) for value in values)
        if runs.seed.duplicated().any():
            raise ValueError(_mixed(name, runs, keys))
        groups.append(Group(name, runs))
    return groups


def _mixed(name: str, runs: pd.DataFrame, keys: list[str]) -> str:
    seed = runs.seed[runs.seed.duplicated()].iloc[0]
    told = f"by={keys} puts runs together as {name!r} that have the same seed, {seed}"
    candidates = [column for column in runs if column in DISTINCT or column.startswith("config.")]
    apart = [column for column in candidates if runs[column].nunique(dropna=False) > 1]
    if not apart:
        return f"{told}, and nothing else tells them apart: keep one of each"
    return f"{told}: group also by what tells them apart, which is one of {apart}"


def tally(frame: pd.DataFrame, drawn: Sequence[Panel]) -> str:
    """What the marks of a group average over, and how many runs of `frame` are left out."""
    counts = [len(group.rows) for panel in drawn for group in panel.groups]
    seeds = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
    note = f"mean and standard deviation over {seeds} seeds" if max(counts) > 1 else "one run each"
    left_out, poor = len(frame) - sum(counts), _no_better(frame)
    note += f";  left out: {left_out} without a score" if left_out else ""
    return note + (f";  {poor} with a dense model no better than chance" if poor else "")


def _no_better(runs: pd.DataFrame) -> int:
    """How many of the runs have a dense model that is no better than chance."""
    return int(runs["above_chance"].eq(False).sum()) if "above_chance" in runs else 0


def winners(pairs: Sequence[tuple[str, str]], verb: str, head: str) -> str:
    """Who wins where, of (group, panel), in one sentence: `verb` follows a sole winner, `head` leads a list of them."""
    where: dict[str, list[str]] = {}
    for group, panel in pairs:
        where.setdefault(group, []).append(panel)
    if len(pairs) > LISTED:
        most = max(where, key=lambda group: len(where[group]))
        return f"{most} {verb} on {len(where[most])} of {len(pairs)} tasks"
    places = {group: " and ".join(names) for group, names in where.items()}
    if len(places) == 1:
        return f"{pairs[0][0]} {verb} on {places[pairs[0][0]]}"
    return f"{head}: " + "; ".join(f"{group} on {names}" for group, names in places.items())
