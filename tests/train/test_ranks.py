"""What several processes do together is what one does alone.

Two processes are started once. In forks of their own they end as processes should not, and are four; then they run the
jobs of the laws one after the other, and one process runs the same jobs here.
"""

import contextlib
import dataclasses
import json
import multiprocessing
import os
import shutil
import socket
import sys
import traceback

import pytest
import torch
from accelerate.state import AcceleratorState
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.optim import AdamW
from transformers import BertConfig, BertForMaskedLM

from nxmiformer import cli
from nxmiformer import ranks as module
from nxmiformer.errors import FileError
from nxmiformer.jobs import compress
from nxmiformer.jobs.compress import follow
from nxmiformer.jobs.job import Job
from nxmiformer.jobs.together import check_together
from nxmiformer.layers.inputs import Activations
from nxmiformer.layers.ranges import Ranges
from nxmiformer.methods.admm import Admm
from nxmiformer.methods.dense import Dense
from nxmiformer.methods.fixed_mask import FixedMask
from nxmiformer.methods.obert import Obert
from nxmiformer.methods.one_shot import OneShot
from nxmiformer.methods.prune_once import PruneOnce
from nxmiformer.methods.sr_ste import SrSte
from nxmiformer.methods.taylor import Taylor
from nxmiformer.models.source import Embedded
from nxmiformer.plan.origin import Planning
from nxmiformer.ranks import Alone, LostError, joined, ranks
from nxmiformer.search.budget import Budget
from nxmiformer.sets import NM, Grid, Then
from nxmiformer.tasks.grammar import Grammar
from nxmiformer.tasks.units import place_units
from nxmiformer.train import loop
from nxmiformer.train.checkpoint import Checkpoints
from nxmiformer.train.objective import Objective
from nxmiformer.train.recipe import Phase, Recipe
from nxmiformer.train.settings import Settings

WORLD = 2
STEPS = 3  # of each phase
WORDS = [
    *("task.train=48", "task.holdout=12", "task.validation=12", "recipe=one_shot", "recipe.phases.dense.steps=5"),
    *("train.batch_size=4", "train.checkpoint_every=2", "train.cpu=true", "dense_cache=null"),
    *("model.layers=1", "model.hidden=16", "model.intermediate=32", "train.log_every=1"),
]


class Doubled(Embedded):
    """The embedded BERT in float64, in which the order of a sum is no more than rounding."""

    def model(self, task, tokenizer, seed):
        return super().model(task, tokenizer, seed).double()


def job(directory, phases, everything=None, resume=False, **options):
    def phase(method, distils):
        objective = Objective(logits=1.0, hidden=0.5) if distils else Objective()
        return Phase(method, lambda groups: AdamW(groups, lr=1e-3), objective, steps=STEPS, weight_decay=0.1)

    recipe = {"dense": phase(Dense(), False)} | {name: phase(method, True) for name, method in phases.items()}
    given = {"batch_size": 5, "accumulation": 2, "eval_batch_size": 7, "evaluate_every": 2, "checkpoint_every": 2}
    return Job(
        name="test",
        directory=directory,
        seed=0,
        task=Grammar(train=48, holdout=24, validation=24),
        source=Doubled(hidden=16, layers=1, heads=2, intermediate=32),
        planning=Planning("test", Then(NM(2, 4), Grid(4)), Activations(8, "ema", 0.9), everything=everything),
        recipe=Recipe(recipe),
        settings=Settings(max_length=64, cpu=True, **{**given, **options}),
        config={"methods": list(phases)},
        resume=resume,
    )


LAWS = {
    "admm": lambda place: job(
        place, {"admm": Admm(calibration=3, rho=0.2, interval=2, dual=1.0), "finish": FixedMask()}
    ),
    "everything": lambda place: job(place, {"admm": Admm(calibration=1, interval=2)}, everything=Ranges()),
    "others": lambda place: job(
        place,
        {
            "sr_ste": SrSte(decay=0.1),
            "prune_once": PruneOnce(prunings=2),
            "taylor": Taylor(prunings=2, gradients=3),
            "one_shot": OneShot(),
        },
    ),
}


def run(job):
    AcceleratorState._reset_state(True)
    follow(job)


def free_port():
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


@contextlib.contextmanager
def kept(place):
    """Keep copies of a run in the middle of its second phase: one to look at, two to go on from."""
    save = Checkpoints.save

    def copying(self, name, model, position, state):
        save(self, name, model, position, state)
        if name == "latest" and (position.phase, position.step) == (1, 2):
            for copy in ("middle", "stopped", "halted"):
                shutil.copytree(place, place.with_name(copy))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "save", copying)
        yield


def laws(place):
    """Run the jobs of all laws below `place`."""
    for name, law in LAWS.items():
        with kept(place / name) if name == "admm" else contextlib.nullcontext():
            run(law(place / name))


def loss_of_tokens(rows):
    """The gradient of a loss with means over masked tokens, all tokens and hidden states, of these rows of a batch: all
    masked tokens are in the first row."""
    config = BertConfig(vocab_size=60, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        found.append(BertForMaskedLM(config).double().eval())
    model, teacher = found
    ids = torch.randint(5, 50, (5, 9), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(9) < torch.tensor([9, 3, 8, 5, 2])[:, None]).long()
    labels = ids.masked_fill((torch.arange(9) >= torch.tensor([7, 0, 0, 0, 0])[:, None]), -100)
    batch = {name: each[rows] for name, each in (("input_ids", ids), ("attention_mask", mask), ("labels", labels))}

    def scored(outputs, batch):
        return place_units(outputs["logits"], batch["labels"])

    def everywhere(outputs, batch):
        return place_units(outputs["logits"], batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100))

    loss = Objective(1.0, 0.7, 2.0, 0.3)(model, teacher, batch, everywhere, scored=scored)
    loss.backward()
    parameters = list(model.parameters())
    ranks().add_gradients(parameters)
    return torch.cat([each.grad.flatten() for each in parameters if each.grad is not None])


def process(rank, place, ports):
    """All that one of the processes does."""
    os.environ.update({"OMP_NUM_THREADS": "1", "MASTER_ADDR": "localhost"})
    torch.set_num_threads(1)
    os.chdir(place)
    for name, act in ENDINGS.items():
        launched(rank, WORLD, ports[name])
        forked(lambda act=act: act(rank), place / f"{name}-{rank}.txt")
    ended = [
        started(lambda each=each: four(each, place, ports["four"]), place / f"four-{each}.txt") for each in twice(rank)
    ]
    for child in ended:
        os.waitpid(child, 0)
    launched(rank, WORLD, ports["laws"])
    with joined():
        laws(place)
        run(dataclasses.replace(LAWS["admm"](place / "one" / "stopped"), resume=True))
        torch.save(loss_of_tokens(ranks().rows(5)), place / f"tokens-{rank}.pt")


def launched(rank, world, port):
    """What a launcher says to a process."""
    here = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in here.items()})


def twice(rank):
    """The ranks of the two forks of a process, among four."""
    return 2 * rank, 2 * rank + 1


def four(rank, place, port):
    """All that one of four processes does."""
    launched(rank, 2 * WORLD, port)
    with joined():
        run(LAWS["admm"](place / "four"))
        run(dataclasses.replace(LAWS["admm"](place / "one" / "halted"), resume=True))


def forked(act, output):
    """Do something in a process of its own, whose words and status are left in a file."""
    os.waitpid(started(act, output), 0)


def started(act, output):
    """Begin that, and give the process's number."""
    child = os.fork()
    if child:
        return child
    with output.open("w") as file:
        os.dup2(file.fileno(), 1), os.dup2(file.fileno(), 2)
        try:
            act()
        except SystemExit as error:
            os.write(1, f"status {error.code}\n".encode())
        except Exception:
            traceback.print_exc()
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(0)


def command(*words):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["nxmiformer", *WORDS, *words])
        patch.setattr(compress, "write_report", lambda directory: None)
        cli.main()


def dies(rank):
    """Rank 1 ends without a word at its third step."""
    check = loop.check_finite
    if rank == 1:
        loop.check_finite = lambda phase, step, *rest: os._exit(9) if step == 3 else check(phase, step, *rest)
    command("name=dies")


def full(rank):
    """The disk of rank 0 is full at its second checkpoint."""
    save = Checkpoints.save

    def fails(self, name, model, position, state):
        if position.step == 4:
            raise FileError("checkpoints cannot be written: No space left on device")
        save(self, name, model, position, state)

    Checkpoints.save = fails
    command("name=full")


def says(rank):
    """Rank 1 fails with a message."""
    with joined():
        if rank == 1:
            ranks().tell("nxmiformer: it is too warm")
            os._exit(2)
        with pytest.raises(LostError) as error:
            ranks().wait()
        print(error.value)


ENDINGS = {"dies": dies, "full": full, "says": says}


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """Where one process has run the jobs."""
    place = tmp_path_factory.mktemp("ranks") / "one"
    place.mkdir()
    laws(place)
    AcceleratorState._reset_state(True)
    return place


@pytest.fixture(scope="module")
def several(one):
    """Where several processes have."""
    place, spawn = one.parent, multiprocessing.get_context("spawn")
    ports = {name: free_port() for name in (*ENDINGS, "four", "laws")}
    found = [spawn.Process(target=process, args=(rank, place, ports)) for rank in range(WORLD)]
    for each in found:
        each.start()
    for each in found:
        each.join(1000)  # on a busy machine
        each.kill()
    assert [each.exitcode for each in found] == [0] * WORLD
    return place


def latest(run):
    return run / "checkpoints" / (run / "checkpoints" / "latest").read_text().strip()


def same(one, other):
    """Raise an error unless two trees of tensors and numbers are equal but for rounding."""
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def same_runs(one, other):
    same(load_file(latest(one) / "model.safetensors"), load_file(latest(other) / "model.safetensors"))
    found = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (one, other)]
    same(*[[{k: v for k, v in row.items() if k not in ("seconds", "phase")} for row in rows] for rows in found])
    same(*[json.loads(torch.load(latest(run) / "state.pt")["facts"])["scores"] for run in (one, other)])


@pytest.mark.parametrize("name", LAWS)
def test_several_processes_make_the_weights_figures_and_scores_of_one(one, several, name):
    same_runs(one / name, several / name)


def test_in_the_middle_of_a_phase_they_have_its_auxiliary_variables_and_duals_too(one, several):
    states = [torch.load(latest(place / "middle") / "state.pt")["optimizer"]["admm"] for place in (several, one)]
    assert states[0]["z"]
    assert any(u.any() for u in states[0]["u"].values())
    same(*[{kind: state[kind] for kind in ("z", "u", "rho", "residuals")} for state in states])


def test_they_go_on_from_the_checkpoint_of_one_process_and_one_goes_on_from_theirs(one, several):
    same_runs(one / "admm", one / "stopped")
    run(dataclasses.replace(LAWS["admm"](several / "stopped"), resume=True))
    AcceleratorState._reset_state(True)
    same_runs(one / "admm", several / "stopped")


def test_four_processes_do_what_one_does_and_go_on_from_its_checkpoint(one, several):
    assert (several / "four").exists(), several.joinpath("four-0.txt").read_text()
    same_runs(one / "admm", several / "four")
    same_runs(one / "admm", one / "halted")


def test_a_mean_over_tokens_has_the_gradient_of_the_whole_batch_whoever_has_the_tokens(several):
    expected = loss_of_tokens(slice(None))
    for rank in range(WORLD):
        same(torch.load(several / f"tokens-{rank}.pt"), expected)


def test_where_a_process_is_killed_the_run_ends_with_one_message_and_its_checkpoint(several):
    first, other = (several.joinpath(f"dies-{rank}.txt").read_text() for rank in range(2))
    assert first.count("nxmiformer: ") == 1
    assert "nxmiformer: the other processes of this run have ended; none of them said why" in first
    assert first.endswith("status 1\n")
    assert other == ""
    run = several / "outputs" / "dies"
    assert latest(run).name.startswith("latest-0-2-")
    assert [json.loads(line)["total_step"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3]
    assert json.loads((run / "failed.json").read_text())["error"] == "LostError"


def test_a_full_disk_of_the_one_that_writes_ends_all_with_its_message(several):
    first = several.joinpath("full-0.txt").read_text()
    assert first.endswith("nxmiformer: checkpoints cannot be written: No space left on device\nstatus 2\n")
    assert several.joinpath("full-1.txt").read_text() == "status 1\n"
    assert latest(several / "outputs" / "full").name.startswith("latest-0-2-")


def test_what_a_silent_process_fails_by_is_said_by_the_one_that_speaks(several):
    assert "rank 1 of 2: nxmiformer: it is too warm" in several.joinpath("says-0.txt").read_text()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"LOCAL_WORLD_SIZE": None}, "LOCAL_WORLD_SIZE is not set: start several processes by torchrun"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE=0"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE=two"),
        ({"MASTER_PORT": "x"}, "cannot meet at MASTER_ADDR=localhost, MASTER_PORT=x"),
    ],
)
def test_processes_that_cannot_meet_are_told_of_by_one_message_before_any_work(monkeypatch, capsys, given, told):
    launched = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    launched |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for name, value in (launched | given).items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as error:
        command("name=unmet")
    assert error.value.code == 2
    assert told in capsys.readouterr().err


def test_a_model_that_skips_layers_at_random_is_refused_on_several_processes_unless_dropout_is_off(
    tmp_path, monkeypatch
):
    asked = job(tmp_path / "several", {"mask": FixedMask()})
    phases = {name: dataclasses.replace(phase, objective=Objective()) for name, phase in asked.recipe.phases.items()}
    asked = dataclasses.replace(asked, recipe=Recipe(phases))
    monkeypatch.setattr(Doubled, "model", skipping(Doubled.model))
    run(dataclasses.replace(asked, directory=tmp_path / "alone"))
    AcceleratorState._reset_state(True)
    monkeypatch.setattr(module, "_ranks", Share(0, 2))
    told = r"skips layers at random \(layerdrop=0\.1\) unless recipe\.phases\.dense\.dropout=false"
    with pytest.raises(ValueError, match=told):
        run(asked)


def skipping(model):
    def call(self, task, tokenizer, seed):
        made = model(self, task, tokenizer, seed)
        made.config.layerdrop = 0.1
        return made

    return call


class Share(Alone):
    def __init__(self, rank, count):
        self.rank, self.count = rank, count


@given(st.integers(1, 9), st.integers(0, 40))
def test_shares_are_all_of_a_batch_and_of_a_list_once_and_differ_by_one_at_most(count, size):
    shares = [Share(rank, count) for rank in range(count)]
    parts = [list(range(size))[each.rows(size)] for each in shares]
    assert [number for part in parts for number in part] == list(range(size))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert sorted(number for each in shares for number in each.mine(range(size))) == list(range(size))


@pytest.mark.parametrize(
    ("kind", "change", "told"),
    [
        ("search", {}, "job=search takes one process"),
        ("blockwise", {}, "job=blockwise takes one process"),
        ("compress", {"budget": Budget(ratio=0.1)}, "a budget takes one process"),
        ("compress", {"settings": Settings(compile=True)}, "train.compile=true takes one process"),
        ("compress", {"settings": Settings(batch_size=1)}, "train.batch_size=1 is for all of them"),
        ("compress", {"recipe": Recipe({"a": Phase(Obert(), AdamW)})}, "recipe.phases.a.method=Obert takes one"),
    ],
)
def test_what_takes_one_process_is_refused_by_name(tmp_path, monkeypatch, kind, change, told):
    asked = dataclasses.replace(LAWS["admm"](tmp_path), **change)
    check_together(kind, asked)
    monkeypatch.setattr(module, "_ranks", Share(0, 2))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="WORLD_SIZE=2: 2 processes cannot run this job together") as error:
        check_together(kind, asked)
    assert told in str(error.value)
    assert list(tmp_path.iterdir()) == []
