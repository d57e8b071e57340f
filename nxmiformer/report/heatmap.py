"""The plan and its error, layer by component."""

import math
from collections.abc import Iterable, Sequence
from itertools import groupby

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator

from nxmiformer.report.numbers import Run
from nxmiformer.report.style import INK, MUTED, ORANGE, PAPER, SMALL, WIDTH, axes, canvas, plain, title

OUTSIDE = "other"  # the row of layers whose name has no index
COLOURS = LinearSegmentedColormap.from_list("error", ["#eef5fb", "#9cc5e3", "#3f8cc2", "#0b4a78"])
# On a coloured cell the text keeps its colour, whatever the screen: these are in no other use.
ON_LIGHT, ON_DARK = "#1a2430", "#fdfeff"
_CHARACTER = SMALL * 0.6 / 72  # inches
Address = tuple[str, int | None, str]  # prefix, layer index, component


def heatmap(run: Run) -> Figure:
    """Layer index by component: the colour is a layer's relative error, the text its set.

    Sets other than the most common one are framed, and in bold.
    """
    texts, errors = _cells(run)
    rows, columns = _rows(texts), _columns(texts)
    common = run.sets.most_common(1)[0][0]
    if folded := max(map(len, texts.values())) > 12:
        texts = {address: text.replace("+", "\n+") for address, text in texts.items()}
    longest = max(len(line) for text in texts.values() for line in text.split("\n"))
    wide, tall = max(0.86, longest * _CHARACTER + 0.22), 0.42 if folded else 0.27 if len(rows) > 24 else 0.34
    heads = [column.replace(".", "\n") for column in columns]
    above = 0.8 + 0.15 * max(head.count("\n") + 1 for head in heads)
    figure = canvas(
        above + len(rows) * tall + (0.5 if len(run.sets) > 1 else 0.3), max(WIDTH, 1.3 + len(columns) * wide)
    )
    ax = figure.subplots()

    grid = np.full((len(rows), len(columns)), math.nan)
    places = {(p, i, c): (list(rows).index((p, i)), columns.index(c)) for p, i, c in texts}
    for address, error in errors.items():
        grid[places[address]] = error
    shown = grid[np.isfinite(grid)]
    low, high = (float(shown.min()), float(shown.max())) if shown.size else (0.0, 1.0)
    low, high = (low, high) if high > low else (low * 0.5, low * 1.5 or 1.0)
    drawn = np.ma.masked_invalid(grid)
    mesh = ax.pcolormesh(drawn, cmap=COLOURS, vmin=low, vmax=high, edgecolors=PAPER, linewidth=1.2)
    axes(ax, "")
    ax.grid(False)
    ax.spines["bottom"].set_visible(False)
    ax.invert_yaxis()
    for address, text in texts.items():
        y, x = places[address]
        error = grid[y, x]
        odd = address in errors and text.replace("\n", "") != common
        colour = _legible(COLOURS((error - low) / (high - low))) if math.isfinite(error) else MUTED
        weight = "bold" if odd else "normal"
        ax.text(
            x + 0.5,
            y + 0.5,
            plain(text),
            color=colour,
            fontweight=weight,
            fontsize=SMALL - 0.5,
            ha="center",
            va="center",
        )
        if odd:
            frame = Rectangle((x + 0.04, y + 0.07), 0.92, 0.86, fill=False, edgecolor=ORANGE, linewidth=1.6)
            ax.add_patch(frame)
    ax.set_xticks(np.arange(len(columns)) + 0.5, [plain(name) for name in heads])
    ax.set_yticks(np.arange(len(rows)) + 0.5, [plain(row) for row in rows.values()])
    ax.xaxis.tick_top()
    ax.tick_params(labelsize=SMALL, labelcolor=INK)
    ax.set_ylabel("layer", fontsize=SMALL, color=MUTED)
    bar = figure.colorbar(mesh, ax=ax, aspect=26, pad=0.015, fraction=0.04)
    bar.outline.set_visible(False)
    bar.ax.set_title("error", loc="left", fontsize=SMALL, color=MUTED)
    bar.ax.tick_params(length=0, labelsize=SMALL, labelcolor=MUTED)
    bar.ax.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _share(value)))
    note = "error: ‖W_dense − W_final‖² / ‖W_dense‖²"
    note += f";  framed: another set than {common}" if len(run.sets) > 1 else ""
    ax.set_xlabel(plain(note), fontsize=SMALL, color=MUTED, loc="left", labelpad=6)
    title(figure, _finding(run))
    return figure


def _finding(run: Run) -> str:
    errors = {name: layer.error for name, layer in run.report.layers.items() if math.isfinite(layer.error)}
    sets = f"All layers are {next(iter(run.sets))}" if len(run.sets) == 1 else f"{len(run.sets)} sets share the layers"
    if not errors:
        return sets
    worst = max(errors, key=lambda name: errors[name])
    _, index, component = _address(worst)
    where = f"{component} of layer {index}" if index is not None else component
    low, high = _share(min(errors.values())), _share(errors[worst])
    if low == high:
        return f"{sets}; every weight's error is {low}"
    return f"{sets}; errors run from {low} to {high}, the most in {where}"


def _share(error: float) -> str:
    return f"{100 * error:.2g} %"


def _legible(colour: tuple[float, ...]) -> str:
    """The text colour that has the greater contrast on `colour` (WCAG 2, relative luminance)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return ON_LIGHT if (luminance + 0.05) ** 2 > 0.05 * 1.05 else ON_DARK


def _address(name: str) -> Address:
    """A module's name as (prefix, layer index, component), cut at its first segment that is an integer.

    A name without one has no index, and is all component.
    """
    segments = name.split(".")
    for i, segment in enumerate(segments):
        if segment.isdecimal() and i + 1 < len(segments):
            return ".".join(segments[:i]), int(segment), ".".join(segments[i + 1 :])
    return "", None, name


def _cells(run: Run) -> tuple[dict[Address, str], dict[Address, float]]:
    """Text and error of every layer by its address, and the text of those among them that stay dense."""
    texts = {_address(name): layer.set for name, layer in run.report.layers.items()}
    errors = {_address(name): layer.error for name, layer in run.report.layers.items()}
    shared = {alias for spec in run.plan.layers.values() for alias in spec.aliases}
    prefixes = {prefix for prefix, index, _ in texts if index is not None}
    components = {component for _, _, component in texts}
    for name in run.plan.skipped:
        prefix, index, component = _address(name)
        if prefix in prefixes and index is not None and component in components:
            texts.setdefault((prefix, index, component), "shared" if name in shared else "dense")
    return texts, errors


def _rows(texts: Iterable[Address]) -> dict[tuple[str, int | None], str]:
    """The rows in order, with their labels; layers whose name has no index are one row, the last."""
    seen = {(prefix, index) for prefix, index, _ in texts}
    order = sorted(seen, key=lambda row: (row[1] is None, row[0], row[1] or 0))
    heads = _short(list(dict.fromkeys(row[0] for row in order if row[1] is not None)))
    return {row: OUTSIDE if row[1] is None else f"{heads[row[0]]} {row[1]}".strip() for row in order}


def _columns(texts: Iterable[Address]) -> list[str]:
    """The components in the order of the rows, each after the one that it follows in its row."""
    columns: list[str] = []
    for _, row in groupby(texts, key=lambda address: address[:2]):
        after = 0
        for _, _, component in row:
            if component not in columns:
                columns.insert(after, component)
            after = columns.index(component) + 1
    return columns


def _short(prefixes: Sequence[str]) -> dict[str, str]:
    """What tells the prefixes apart: nothing where there is one, else the first segment in which they differ."""
    if len(prefixes) < 2:
        return dict.fromkeys(prefixes, "")
    split_up = [prefix.split(".") for prefix in prefixes]
    same = 0
    while all(len(s) > same for s in split_up) and len({s[same] for s in split_up}) == 1:
        same += 1
    heads = [s[same] if len(s) > same else s[-1] for s in split_up]
    return dict(zip(prefixes, heads if len(set(heads)) == len(heads) else prefixes, strict=True))
