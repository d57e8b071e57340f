"""What a search left in its directory: `search.json`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from nxmiformer.runs.address import address
from nxmiformer.runs.parse import parse, shaped

SEARCH = "search.json"


@dataclass(frozen=True)
class _Task:
    name: str
    metric: str


@dataclass(frozen=True)
class _Plan:
    name: str
    sets: Mapping[str, str]
    bits: int
    predicted: float
    divergence: float
    score: float
    trials: list
    cost: int | None = None


@dataclass(frozen=True)
class _Pair:
    layers: list
    together: float
    sum: float


@dataclass(frozen=True, kw_only=True)
class _Found:
    format: Literal[1] = 1
    task: _Task
    accounting: str
    dense: float
    budget: int
    best: _Plan
    damages: Mapping[str, Mapping[str, float]]
    plans: list[_Plan]
    frontier: list[_Plan]
    interactions: list[_Pair]
    latency: dict | None = None


def read_search(directory: str | Path) -> dict[str, Any]:
    """The content of the `search.json` in a directory, as `job=search` writes it.

    Raises:
        FileNotFoundError: the directory, or the file, is not there.
        ValueError: the file is damaged or lacks a key; the message names both.
    """
    path = Path(directory) / SEARCH
    text = path.read_bytes()
    found = shaped(text, path, _Found)
    for name in found.damages.keys() - found.best.sets.keys():
        raise ValueError(f"{path}: the key 'best.sets.{name}' is missing")
    return parse(text, path)


def chosen(found: Mapping[str, Any]) -> pd.DataFrame:
    """The best plan's set of each layer, a row a layer, from the content of a `search.json`.

    Columns: layer (its name), index and component (see `address`), set (in words), damage (predicted; 0 if dense).
    """
    rows = []
    for name, words in found["best"]["sets"].items():
        _, index, component = address(name)
        rows.append((name, index, component, words, found["damages"].get(name, {}).get(words, 0.0)))
    return pd.DataFrame(rows, columns=["layer", "index", "component", "set", "damage"])


def interactions(found: Mapping[str, Any]) -> pd.DataFrame:
    """The pairs of layers that were looked at, a row each, from the content of a `search.json`.

    Columns: first, second (names), together (the damage of both), sum (of their damages), and excess, the difference.
    """
    rows = [(*pair["layers"], pair["together"], pair["sum"]) for pair in found["interactions"]]
    frame = pd.DataFrame(rows, columns=["first", "second", "together", "sum"])
    return frame.assign(excess=frame["together"] - frame["sum"])
