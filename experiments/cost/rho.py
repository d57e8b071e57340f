"""How far the reconstruction converges in so many iterations, by the schedule of rho:
python experiments/cost/rho.py --model DENSE --task mrpc --glue GLUE

Prints the relative error of the points that are found, as a geometric mean over all layers and four sets, over that of
the default schedule in 50 iterations. A few rows of each weight are reconstructed: each row is a problem of its own.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from scipy.stats import gmean

from nxmiformer.applied.convert import convert
from nxmiformer.jobs.search import ANY
from nxmiformer.layers.found import linear_layers
from nxmiformer.layers.moments import Batch, input_moments
from nxmiformer.layers.targets import find_targets
from nxmiformer.models.source import Pretrained
from nxmiformer.optim.reconstruct import Problem, course
from nxmiformer.plan.compression import CompressionPlan
from nxmiformer.sets.words import from_words
from nxmiformer.tasks.batches import shuffled

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from glue import HUB, NAMES, glue  # noqa: E402 (beside the studies, not installed)

Course = Callable[[int], tuple[float, float]]
COURSES: dict[str, Course] = {
    "the default": course,
    "0.4": lambda _: (0.4, 0.4),
    "0.1": lambda _: (0.1, 0.1),
    "1": lambda _: (1.0, 1.0),
    "0.03 to 3": lambda _: (0.03, 3.0),
}
ITERATIONS = (3, 5, 10, 20, 50)
SETS = ("2:4+int8", "2:4+int4", "1:4+int4", "int3")
BATCHES = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="directory of a dense fine-tuned model")
    parser.add_argument("--task", required=True, choices=NAMES)
    parser.add_argument("--glue", default=HUB, help="directory of GLUE in the hub's layout (default: the hub)")
    parser.add_argument("--rows", type=int, default=8, help="of each weight (default: %(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    problems = _problems(arguments)
    base = _error(problems, course, ITERATIONS[-1])
    table = Table("rho", *map(str, ITERATIONS), title="error over that of the default in 50 iterations")
    for name, each in COURSES.items():
        table.add_row(name, *(f"{_error(problems, each, count) / base:.2f}" for count in ITERATIONS))
    Console().print(table)


def _problems(arguments: argparse.Namespace) -> list[Problem]:
    """Those of some rows of each layer, on the inputs that training begins with."""
    task, source = glue(arguments.task, arguments.glue), Pretrained(str(arguments.model))
    tokenizer = source.tokenizer(task)
    model = source.model(task, tokenizer, 0).eval()
    convert(model, CompressionPlan.uniform(model, find_targets(model), ANY))
    examples = task.encode(task.splits()["train"], tokenizer, 128, model.config)
    stream = shuffled(examples, 32, 0, 0, torch.device("cpu"))

    @torch.no_grad()
    def forward(batch: Batch) -> None:
        model(**task.inputs(batch))

    moments, generator = input_moments(model, (next(stream) for _ in range(BATCHES)), forward), torch.Generator()
    problems = []
    for name, layer in linear_layers(model).items():
        rows = torch.randperm(layer.out_features, generator=generator.manual_seed(0))[: arguments.rows]
        problems.append(Problem(layer.matrix.detach(), moments[name]).of(rows))
    return problems


def _error(problems: list[Problem], rho: Course, iterations: int) -> float:
    """The geometric mean of the errors."""
    errors = []
    for problem in problems:
        problem.course = rho
        errors += [problem.reconstruct(from_words(words), iterations).error[1] for words in SETS]
    return float(gmean(errors))


if __name__ == "__main__":
    main()
