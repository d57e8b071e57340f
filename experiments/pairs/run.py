"""Which recipe trains towards which plan, and which method may follow which.

A tiny random model goes through a few steps of each pair, to the packed file: every recipe with every plan, and every
method of a phase after every other, under the plan 2:4 + INT4. A row of results.csv says yes, or gives the refusal. A
refusal must come before the first step: a pair that fails later stops the script. A cell that is there is not run
again.

    python experiments/pairs/run.py    # the tables at the end go to docs/pairs.md
"""

import argparse
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from cells import TINY, job  # noqa: E402 (beside the studies, not installed)
from hydra.errors import HydraException  # noqa: E402
from rows import Rows  # noqa: E402

from nxmiformer.jobs.compress import run  # noqa: E402

RESULTS, TABLE = HERE / "results.csv", HERE.parents[1] / "docs" / "pairs.md"
CONF = HERE.parents[1] / "conf"
CELL = ("kind", "first", "second")
YES = "yes"
PLAN = "2of4_int4"
OWN_START = {"kronecker_corpus", "kronecker_task", "pattern_lock"}  # recipes that begin with another run's model
PHASES = (
    "admm",
    "fixed_mask",
    "sr_ste",
    "ste_qat",
    "obert",
    "prune_once",
    "taylor",
    "group_lasso",
    "movement",
    "kronecker",
    "one_shot",
)
PAGE = """# What goes with what

`experiments/pairs/run.py` takes a tiny random model through a few steps of each pair, to the packed file. What cannot
go together is refused before the first step. The numbers lead to the refusals.

## Recipes and plans

{plans}

Three recipes are not here, for they begin with another run's model: `pattern_lock`, `kronecker_corpus` and
`kronecker_task`.

## One method after another

Any recipe is a list of phases, each of which begins with the weights of the one before. Here the plan is `{plan}`, and
`kronecker` trains its sets straight-through. Such a recipe is composed so:

```
nxmiformer plan={plan} recipe=one_shot '~recipe.phases.one_shot' \\
  +phase@recipe.phases.first=obert +phase@recipe.phases.second=admm ...
```

{phases}

## Why not

{reasons}
"""
COMMON = [*TINY, "train.cpu=true", "train.threads=1", "dense_cache=null", "recipe.phases.dense.steps=2"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    rows = Rows(RESULTS, CELL, ("found",))
    for kind, first, second in cells():
        cell = {"kind": kind, "first": first, "second": second}
        if rows.of(cell) is None:
            row = {**cell, "found": found(words_of(kind, first, second))}
            rows.add(row)
            print(*row.values(), flush=True)
    TABLE.write_text(page({(row["kind"], row["first"], row["second"]): row["found"] for row in rows.read()}))


def names(group: str) -> list[str]:
    """The options of a group of the configuration."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def cells() -> Iterator[tuple[str, str, str]]:
    """Kind, and the two of each pair."""
    yield from (
        ("plan", recipe, plan) for recipe in names("recipe") if recipe not in OWN_START for plan in names("plan")
    )
    yield from (("phase", first, second) for first in PHASES for second in PHASES)


def words_of(kind: str, first: str, second: str) -> list[str]:
    """The words of the run of a pair."""
    if kind == "plan":
        named = re.findall(r"/phase@phases\.(\w+): (\w+)", (CONF / "recipe" / f"{first}.yaml").read_text())
        return [f"recipe={first}", f"plan={second}", *_few(dict(named))]
    phases = {"first": first, "second": second}
    added = [f"+phase@recipe.phases.{name}={phase}" for name, phase in phases.items()]
    return ["recipe=one_shot", "~recipe.phases.one_shot", *added, f"plan={PLAN}", *_few(phases)]


def _few(phases: Mapping[str, str]) -> list[str]:
    """Words for few steps, and for few batches before them."""
    steps = [f"recipe.phases.{name}.steps=3" for name, phase in phases.items() if phase not in ("dense", "one_shot")]
    few = {"admm": "calibration", "obert": "gradients", "obert_gradual": "gradients", "taylor": "gradients"}
    return steps + [f"recipe.phases.{name}.method.{few[phase]}=2" for name, phase in phases.items() if phase in few]


def found(words: Sequence[str]) -> str:
    """Yes, or the refusal of the run of these words.

    Raises:
        RuntimeError: it failed after its first step.
    """
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place) / "run"
        try:
            run(job(directory, [*COMMON, *words]))
        except (ValueError, HydraException) as error:
            metrics = directory / "metrics.jsonl"
            if metrics.exists() and metrics.stat().st_size:
                raise RuntimeError(f"{' '.join(words)}: it was not refused before the first step") from error
            return " ".join(str(root(error)).split())
    return YES


def root(error: BaseException) -> BaseException:
    """The error that is the cause of others."""
    return error if error.__cause__ is None else root(error.__cause__)


def page(found: dict[tuple[str, str, str], str]) -> str:
    """What docs/pairs.md says."""
    reasons: dict[str, int] = {}
    recipes, plans = (list(dict.fromkeys(cell[n] for cell in found if cell[0] == "plan")) for n in (1, 2))
    first = _table("recipe", recipes, plans, lambda row, column: found["plan", row, column], reasons)
    second = _table("first, then", PHASES, PHASES, lambda row, column: found["phase", row, column], reasons)
    told = "\n".join(f"{number}. {reason}" for reason, number in reasons.items())
    return PAGE.format(plans=first, phases=second, plan=PLAN, reasons=told)


def _table(
    corner: str, rows: Sequence[str], columns: Sequence[str], of: Callable[[str, str], str], reasons: dict[str, int]
) -> str:
    """A table in Markdown; a refusal is the number that its words have in `reasons`."""

    def cell(row: str, column: str) -> str:
        words = of(row, column)
        return words if words == YES else f"({reasons.setdefault(_short(words), len(reasons) + 1)})"

    lines = [[corner, *columns], ["---"] * (len(columns) + 1)]
    lines += [[f"`{row}`", *(cell(row, column) for column in columns)] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _short(refusal: str) -> str:
    """A refusal without the names of its method and set, one for all alike."""
    return re.sub(r"^\w+ prunes, and .* leaves", "the recipe prunes, and the plan leaves", refusal)


if __name__ == "__main__":
    main()
