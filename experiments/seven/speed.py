"""Time the compressed models of the study beside the dense one: python experiments/seven/speed.py --outputs OUT

Every run that study.py left in OUT is exported to ONNX and timed against its dense model in float32 PyTorch, on one
CPU thread. Every timed one is a row of speeds.csv, and is not timed again. Other work on the machine spoils the times.
"""

import argparse
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from rows import Rows  # noqa: E402 (beside the studies, not installed)
from speeds import DENSE, speeds  # noqa: E402

from nxmiformer.bench.clock import Bench  # noqa: E402
from nxmiformer.export.packed import load_packed  # noqa: E402
from nxmiformer.plan.compression import CompressionPlan  # noqa: E402

CELL = ("task", "plan", "method", "seed")
TIMED = ("contender", "batch", "length")
INT8 = "onnx"


def main() -> None:
    arguments = _arguments()
    rows = Rows(arguments.results.with_name("speeds.csv"), (*CELL, *TIMED), ("median", "ratio"))
    bench = Bench(arguments.batches, [arguments.length], repeats=arguments.repeats, seconds=300.0)
    for row in Rows(arguments.results, CELL, ()).read():
        cell = {key: row[key] for key in CELL}
        run = arguments.outputs / "-".join(cell.values())
        names = {"contender": INT8, "batch": bench.batches[-1], "length": arguments.length}
        if not (run / "packed").exists() or rows.of({**cell, **names}):
            continue
        packed = load_packed(run / "packed")
        dense = type(packed).from_pretrained(arguments.outputs / f"{cell['task']}-dense-{cell['seed']}" / "dense")
        onnx = {INT8: (packed, CompressionPlan.load(run / "plan.json"))}
        for each in speeds({DENSE: dense}, onnx, run, bench):
            if each.contender == INT8:
                rows.add({**cell, **each._asdict()})
                print(*cell.values(), *each, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--outputs", type=Path, default=Path("outputs/glue"), help="of study.py (default: %(default)s)")
    parser.add_argument("--results", type=Path, default=HERE / "results.csv", help="its rows (default: %(default)s)")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=21)
    return parser.parse_args()


if __name__ == "__main__":
    main()
