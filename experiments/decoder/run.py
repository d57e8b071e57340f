"""A decoder compressed block by block without training, beside what llm-compressor makes of it on the same windows.

    python experiments/decoder/run.py --model MODEL --texts TEXTS --outputs OUT      # the dense model, and ours
    python experiments/decoder/llm_compressor.py --model MODEL --windows OUT/windows.json --way gptq --out OUT/gptq
    python experiments/decoder/run.py --model MODEL --texts TEXTS --outputs OUT --rivals gptq ...   # their scores

TEXTS is a directory of `train` and `test` texts, as task=causal takes it: see README.md. Every finished row of
results.csv is not run again.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from cells import job  # noqa: E402 (beside the studies, not installed)
from rows import Rows  # noqa: E402

from nxmiformer.blockwise.score import score  # noqa: E402
from nxmiformer.console.display import SILENT  # noqa: E402
from nxmiformer.jobs.blockwise import blockwise  # noqa: E402
from nxmiformer.jobs.decoder import Opened, open_decoder  # noqa: E402
from nxmiformer.jobs.job import Job  # noqa: E402

GROUPED = "{_target_: nxmiformer.sets.Grid, bits: %d, group: 64}"
CANDIDATES = "search.candidates.sets=[int8,int4g64,int3g64,2:4+int8,2:4+int4g64,1:4+int4g64]"
PLANS = {
    "2of4": ["plan=2of4"],
    "int4": ["plan=int4", "plan.weight.group=64"],
    "int3": ["plan=int4", "plan.weight.group=64", "plan.weight.bits=3", "plan.name=int3"],
    "2of4_int4": ["plan=2of4_int4", "plan.weight.second.group=64"],
    "searched": ["plan=2of4_int4", "budget.ratio=0.11", CANDIDATES, "search.iterations=3"],
}
CELL = ("name",)
VALUES = ("software", "perplexity", "share", "seconds", "device")


def main() -> None:
    arguments = _arguments()
    rows = Rows(arguments.results, CELL, VALUES)
    opened = _opened(arguments, arguments.model)
    windows = [row for each in opened[1].passage.compressed.ids for row in each.tolist()]
    arguments.outputs.mkdir(parents=True, exist_ok=True)
    (arguments.outputs / "windows.json").write_text(json.dumps(windows))
    if rows.of({"name": "dense"}) is None:
        rows.add({"name": "dense", "software": "", "perplexity": _perplexity(*opened), "share": 1.0, "seconds": 0})
    for name in arguments.rivals:
        if rows.of({"name": name}) is None:
            place = arguments.outputs / name
            found = {"perplexity": _perplexity(*_opened(arguments, str(place)))}
            found["seconds"] = round(json.loads((place / "seconds.json").read_text()))
            rows.add({"name": name, "software": "llm-compressor", "share": "", **found})
    for name in arguments.plans:
        if rows.of({"name": name}) is None:
            content = blockwise(_job(arguments, arguments.model, name, PLANS[name]))
            rows.add({"name": name, "software": "nxmiformer", **_found(content)})
    for row in rows.read():
        print(*row.values())


def _job(arguments: argparse.Namespace, model: str, name: str, words: list[str]) -> Job:
    common = ["job=blockwise", "task=causal", f"task.path={arguments.texts}", "task.validation_split=test"]
    common += ["model=pretrained", f"model.path={model}", f"train.max_length={arguments.length}", "train.threads=1"]
    common += [f"blockwise.windows={arguments.windows}", f"blockwise.iterations={arguments.iterations}"]
    return job(arguments.outputs / f"ours-{name}", [*common, *words, "plan.activations=null", "resume=true"])


def _opened(arguments: argparse.Namespace, model: str) -> tuple[Job, Opened]:
    """Whatever has to do with a checkpoint, but its weights."""
    whole = _job(arguments, model, Path(model).name, PLANS["int4"])
    return whole, open_decoder(whole, SILENT, whole.planning)


def _perplexity(whole: Job, opened: Opened) -> float:
    size, place = whole.blockwise.batch, whole.directory / "activations"
    found = score(opened.passage.decoder, opened.dense, whole.task, opened.scored, size, place, quantized=False)
    return found[whole.task.metric]


def _found(content: dict[str, Any]) -> dict[str, Any]:
    metric = content["task"]["metric"]
    seconds, device = round(sum(each["seconds"] for each in content["blocks"])), content["device"]
    share = 1 - content["compression"]["all"]
    return {
        "perplexity": content["scores"]["packed"][metric], "share": share, "seconds": seconds, "device": device
    }  # fmt: skip


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="directory of a decoder")
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--outputs", type=Path, default=Path("outputs") / HERE.name)
    parser.add_argument("--results", type=Path, default=HERE / "results.csv")
    parser.add_argument("--rivals", nargs="*", default=[], help="names of directories below the outputs")
    parser.add_argument("--plans", nargs="*", default=list(PLANS), choices=list(PLANS))
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--iterations", type=int, default=10)
    arguments = parser.parse_args()
    arguments.outputs, arguments.texts = arguments.outputs.resolve(), arguments.texts.resolve()
    return arguments


if __name__ == "__main__":
    main()
