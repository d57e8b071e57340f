"""What ADMM and fake quantization cost: python experiments/cost/run.py --model sentence-transformers/all-MiniLM-L6-v2

Prints a table: the time of one optimizer step of each method over the dense step's, taken in turns so that a noisy
machine troubles all alike; the time that ADMM takes to reconstruct all layers before its first step; the time of
projecting them; the memory of Z and U per weight.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForSequenceClassification

from nxmiformer.applied.convert import convert
from nxmiformer.console.quiet import quiet
from nxmiformer.layers.found import distinct_layers
from nxmiformer.layers.inputs import Activations
from nxmiformer.layers.targets import find_targets
from nxmiformer.methods.admm import Admm
from nxmiformer.methods.base import Calibration, Length, Method
from nxmiformer.methods.dense import Dense
from nxmiformer.methods.fixed_mask import FixedMask
from nxmiformer.methods.sr_ste import SrSte
from nxmiformer.optim import ADMM
from nxmiformer.plan.compression import CompressionPlan
from nxmiformer.sets import NM, Grid, Then

BATCH, TOKENS = 32, 40


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bert-base-uncased")
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--precision", choices=("no", "bf16"), default="no")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    methods: dict[str, Method] = {"dense": Dense(), "fixed_mask": FixedMask(), "admm": Admm(), "sr_ste": SrSte()}
    steps = {name: _stepper(method, arguments.model, arguments.precision) for name, method in methods.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(arguments.rounds):
        for name, step in steps.items():
            began = time.perf_counter()
            step(turn)
            times[name].append(time.perf_counter() - began)
    console = Console()
    console.print(_step_table(times, arguments))
    console.print(_calibration_table(arguments, statistics.mean(times["dense"][1:])))
    console.print(_projection_table(arguments.model))


def _stepper(method: Method, path: str, precision: str) -> Callable[[int], None]:
    """One training step of a model of its own, as a function of the step's number."""
    model, _ = _converted(path)
    method.attach(model, Length(1000, 100))
    optimizer = method.optimizer(torch.optim.AdamW((p for _, p in method.parameters()), lr=1e-5))
    batch = _batch()

    def step(number: int) -> None:
        method.before_step(number)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = model.train()(**batch).loss
        loss.backward()
        method.before_clip()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _batch() -> dict[str, torch.Tensor]:
    tokens = torch.randint(1000, 20000, (BATCH, TOKENS))
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": torch.rand(BATCH)}


def _calibration_table(arguments: argparse.Namespace, dense: float) -> Table:
    """The calibration batches and the reconstruction of all layers, and how many dense steps that is."""
    method, model = Admm(), _converted(arguments.model)[0]
    method.attach(model, Length(1000, 100))
    batches = [_batch() for _ in range(method.calibration)]

    @torch.no_grad()
    def forward(batch: Mapping[str, torch.Tensor]) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=arguments.precision == "bf16"):
            model(**batch)

    def loss(batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        found: torch.Tensor = model(**batch).loss
        return found

    taken = _time(lambda: list(method.calibrate(Calibration(iter(batches), forward, loss, loss))))
    table = Table("before ADMM's first step", "seconds", "/ dense step")
    table.add_row(f"{method.calibration} batches, 2:4 + INT4 in every layer", f"{taken:.1f}", f"{taken / dense:.0f}")
    return table


def _converted(path: str, bits: int = 4) -> tuple[torch.nn.Module, CompressionPlan]:
    with quiet():
        model = AutoModelForSequenceClassification.from_pretrained(path, num_labels=1, dtype=torch.float32)
    plan = CompressionPlan.uniform(model, find_targets(model), Then(NM(2, 4), Grid(bits)), Activations(8))
    return convert(model, plan), plan


def _step_table(times: dict[str, list[float]], arguments: argparse.Namespace) -> Table:
    """Medians, after the first round; the mean too, because refreshes come every 16 steps."""
    how = f"{arguments.threads} threads, precision {arguments.precision}"
    title = f"one step, batch {BATCH} x {TOKENS} tokens, 2:4 + INT4 + A8, {how}"
    table = Table("method", "median ms", "mean ms", "mean / dense", title=title)
    dense = statistics.mean(times["dense"][1:])
    for name, taken in times.items():
        mean = statistics.mean(taken[1:])
        table.add_row(name, f"{statistics.median(taken[1:]) * 1e3:.0f}", f"{mean * 1e3:.0f}", f"{mean / dense:.2f}")
    return table


def _projection_table(path: str) -> Table:
    table = Table("projection of all layers", "ms", "/ one copy of the weights", "weights", "Z and U, bytes a weight")
    for bits in (4, 8):
        table.add_row(*_projection(path, bits))
    return table


def _projection(path: str, bits: int) -> tuple[str, ...]:
    """The best of five projections of every layer; the floor is to read and write the weights once."""
    model, plan = _converted(path, bits)
    weights = [layer.matrix.detach() for layer in distinct_layers(model).values()]
    constraint = Then(NM(2, 4), Grid(bits))
    taken = min(_time(lambda: [constraint.project(w) for w in weights]) for _ in range(5))
    floor = min(_time(lambda: [w.clone() for w in weights]) for _ in range(5))
    admm = ADMM(torch.optim.AdamW(model.parameters()), model.named_parameters(), plan.sets(), rho=1e-2)
    count = sum(w.numel() for w in weights)
    held = sum(t.numel() * t.element_size() for state in (admm.z, admm.u) for t in state.values()) / count
    return str(constraint), f"{taken * 1e3:.0f}", f"{taken / floor:.0f}", f"{count:,}", f"{held:.0f} (4 with dual=0)"


def _time(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
