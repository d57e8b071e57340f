"""The remaining heads and dimensions of each layer."""

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nxmiformer.figures.colours import BLUE, RULE
from nxmiformer.figures.style import axes, canvas, label, title
from nxmiformer.runs import words
from nxmiformer.runs.numbers import Run


def units(run: Run) -> Figure:
    """Bars of the heads and dimensions that contribute anything, layer by layer, over their original number."""
    layers = list((run.report.units or {}).values())
    kinds = list(dict.fromkeys(kind for layer in layers for kind in layer))
    figure = canvas(1.1 + 0.9 * len(kinds))
    shares = {}
    for ax, kind in zip(figure.subplots(len(kinds), squeeze=False)[:, 0], kinds, strict=True):
        counts = [layer[kind] for layer in layers]
        left, whole = (sum(each) for each in zip(*counts, strict=True))
        shares[kind] = words.percent(left / whole)
        axes(ax, f"{kind} left of each layer, {left:,} of {whole:,}")
        ax.bar(range(len(layers)), [full for _, full in counts], 0.7, color=RULE)
        ax.bar(range(len(layers)), [kept for kept, _ in counts], 0.7, color=BLUE)
        for x, (kept, full) in enumerate(counts):
            label(ax, str(kept), (x, full), ha="center", textcoords="offset points", xytext=(0, 2))
        ax.set_ylim(0, 1.25 * max(full for _, full in counts))
        ax.yaxis.set_major_locator(MaxNLocator(3, integer=True))
        ax.set_xticks(range(len(layers)), [str(number) for number in range(len(layers))])
    title(figure, "Compaction leaves " + " and ".join(f"{share} of the {kind}" for kind, share in shares.items()))
    return figure
