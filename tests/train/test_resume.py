"""A run that was stopped, and goes on, ends in the same bits as one that was not."""

import dataclasses
import json

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import nn
from torch.optim import AdamW

from nxmiformer.errors import RefusedError
from nxmiformer.export import load_packed
from nxmiformer.jobs import compress as jobs
from nxmiformer.jobs.job import Job
from nxmiformer.layers.inputs import Activations
from nxmiformer.methods.admm import Admm
from nxmiformer.methods.admm_paper import AdmmPaper
from nxmiformer.methods.dense import Dense
from nxmiformer.methods.fixed_mask import FixedMask
from nxmiformer.methods.obert import Obert
from nxmiformer.methods.sr_ste import SrSte
from nxmiformer.methods.ste_qat import SteQat
from nxmiformer.models.source import Embedded
from nxmiformer.plan.origin import Planning
from nxmiformer.sets import NM, Grid, Then
from nxmiformer.tasks.grammar import Grammar
from nxmiformer.train.objective import Objective
from nxmiformer.train.recipe import Phase, Recipe
from nxmiformer.train.settings import Settings
from nxmiformer.train.tracker import Jsonl

STEPS = 6  # of each phase
SIZES = {"hidden": 32, "layers": 2, "heads": 2, "intermediate": 64}


class Killed(BaseException):
    """What a kill looks like to the code that it stops."""


class Dropping(Embedded):
    """The embedded BERT with dropout, so that training depends on the random generators too."""

    def model(self, task, tokenizer, seed):
        model = super().model(task, tokenizer, seed)
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.1
        return model


@pytest.fixture(autouse=True)
def _fresh_state(monkeypatch):
    """A fresh accelerate for every run, the number of threads as it was, and no report, which takes long to draw."""
    threads = torch.get_num_threads()
    monkeypatch.setattr(jobs, "write_report", lambda directory: None)
    yield
    AcceleratorState._reset_state(True)
    torch.set_num_threads(threads)


METHODS = {
    "admm": lambda: {
        "admm": Admm(rho=0.2, interval=4, course="balanced", dual=1.0, importance="second_moment"),
        "finish": FixedMask(refresh=4, rescale=5),
    },
    "admm_joint": lambda: {
        "admm": Admm(rho=0.2, interval=3, target="joint", pull="penalty"),
        "finish": FixedMask(learned_scales=True),
    },
    "admm_paper": lambda: {"admm_paper": AdmmPaper(rho=0.1), "finish": SteQat(delay=3, rescale=2)},
    "obert": lambda: {"obert": Obert(gradients=2, block=8, prunings=3, initial=0.2, after=0.2), "finish": FixedMask()},
    "sr_ste": lambda: {"sr_ste": SrSte(decay=0.1), "finish": SteQat(learned_scales=True)},
}


def job(directory, methods="admm", resume=False, lr=1e-3, seed=0, weight=None, **options):
    def phase(method, objective, rate):
        return Phase(
            method,
            lambda groups: AdamW(groups, lr=rate),
            objective,
            steps=STEPS,
            weight_decay=0.1,
            schedule="cosine",
            relative=methods == "admm_joint" and not isinstance(method, Dense),
        )

    weight = weight or Then(NM(2, 4), Grid(4))
    distil = Objective(logits=1.0, hidden=0.5)
    phases = {"dense": phase(Dense(), Objective(), 3e-3)}
    phases |= {name: phase(method, distil, lr) for name, method in METHODS[methods]().items()}
    return Job(
        name="test",
        directory=directory,
        seed=seed,
        task=Grammar(train=48, holdout=12, validation=12),
        source=Dropping(**SIZES),
        planning=Planning("test", weight, Activations(8, "ema", 0.9)),
        recipe=Recipe(phases),
        settings=Settings(batch_size=4, accumulation=2, max_length=64, checkpoint_every=2, evaluate_every=3, cpu=True),
        config={"recipe": {"lr": lr}, "resume": resume},
        resume=resume,
        **options,
    )


def run(job):
    AcceleratorState._reset_state(True)
    return jobs.run(job)


def interrupted(job, at, written=True):
    """Run the job until the row of `total_step` `at` is logged, and stop it there: after that row, or in it."""
    log = Jsonl.log

    def stop(self, row):
        if row["total_step"] < at or written:
            log(self, row)
        elif not written:
            with self.path.open("a") as file:
                file.write(json.dumps(row)[:20])
        if row["total_step"] == at:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Jsonl, "log", stop)
        with pytest.raises(Killed):
            run(job)


def weights(directory):
    return (directory / "packed" / "model.safetensors").read_bytes()


def rows(directory):
    """The rows of figures, without the time that they took."""
    found = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in found]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What uninterrupted runs leave, by recipe: a function, because not every test needs each."""
    done = {}

    def find(methods):
        if methods not in done:
            done[methods] = tmp_path_factory.mktemp(methods)
            run(job(done[methods], methods))
        return done[methods]

    return find


def test_the_same_run_twice_gives_the_same_bits_and_another_seed_others(whole, tmp_path):
    run(job(tmp_path / "again"))
    assert weights(tmp_path / "again") == weights(whole("admm"))
    assert rows(tmp_path / "again") == rows(whole("admm"))
    run(job(tmp_path / "other", seed=1))
    assert weights(tmp_path / "other") != weights(whole("admm"))


# 6 and 12 are the last steps of their phases, 7 is the first one of the next.
@pytest.mark.parametrize("at", [3, 6, 7, 12, 18])
def test_a_run_that_was_stopped_at_any_step_of_any_phase_ends_in_the_same_bits(whole, tmp_path, at):
    interrupted(job(tmp_path), at, written=at % 2 == 0)
    content = run(job(tmp_path, resume=True))
    assert weights(tmp_path) == weights(whole("admm"))
    assert rows(tmp_path) == rows(whole("admm"))
    assert [row["total_step"] for row in rows(tmp_path)] == list(range(1, 3 * STEPS + 1))
    expected = json.loads((whole("admm") / "report.json").read_text())
    for key in ("scores", "storage", "layers", "plan"):
        assert content[key] == expected[key]


@pytest.mark.parametrize("methods", ["admm_joint", "admm_paper", "obert", "sr_ste"])
def test_every_method_goes_on_in_the_same_bits_in_each_of_its_phases(whole, tmp_path, methods):
    interrupted(job(tmp_path, methods), 11)
    interrupted(job(tmp_path, methods, resume=True), 15)
    run(job(tmp_path, methods, resume=True))
    assert weights(tmp_path) == weights(whole(methods))
    assert rows(tmp_path) == rows(whole(methods))


def test_a_run_that_is_stopped_again_and_again_ends_in_the_same_bits(whole, tmp_path):
    for at in (5, 8, 11, 14, 17):
        interrupted(job(tmp_path, resume=at > 5), at)
    run(job(tmp_path, resume=True))
    assert weights(tmp_path) == weights(whole("admm"))
    assert rows(tmp_path) == rows(whole("admm"))


def test_a_run_whose_packed_model_is_damaged_mends_it_and_only_packs_again(whole, tmp_path):
    run(job(tmp_path))
    (tmp_path / "packed" / "packed.json").write_text("")
    (tmp_path / "packed" / "notes").write_text("mine")
    run(job(tmp_path, resume=True))
    load_packed(tmp_path / "packed")
    assert weights(tmp_path) == weights(whole("admm"))
    assert rows(tmp_path) == rows(whole("admm"))
    assert (tmp_path / "packed.1" / "notes").read_text() == "mine"


def test_a_run_stopped_before_its_first_checkpoint_begins_again_unless_it_has_become_another(whole, tmp_path):
    interrupted(job(tmp_path), 1)
    with pytest.raises(RefusedError, match=r"recipe\.lr: 0\.001 in the run there, 0\.002 now"):
        run(job(tmp_path, resume=True, lr=2e-3))
    run(job(tmp_path, resume=True))
    assert weights(tmp_path) == weights(whole("admm"))
    assert rows(tmp_path) == rows(whole("admm"))


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"lr": 2e-3}, "config.recipe.lr: 0.001 in the checkpoint, 0.002 now"),
        ({"seed": 1}, "seed: 0 in the checkpoint, 1 now"),
        ({"weight": Grid(4)}, "plan: '"),
    ],
    ids=["lr", "seed", "plan"],
)
def test_a_run_that_has_become_another_is_not_resumed_and_the_difference_is_shown(tmp_path, change, line):
    interrupted(job(tmp_path), 4)
    before, plan = rows(tmp_path), (tmp_path / "plan.json").read_text()
    with pytest.raises(ValueError, match="is a checkpoint of another run") as error:
        run(job(tmp_path, resume=True, **change))
    assert any(shown.strip().startswith(line) for shown in str(error.value).splitlines()[1:])
    assert rows(tmp_path) == before
    assert (tmp_path / "plan.json").read_text() == plan


def test_what_does_not_change_a_run_does_not_keep_it_from_being_resumed(whole, tmp_path):
    interrupted(job(tmp_path), 10)
    run(dataclasses.replace(job(tmp_path, resume=True), name="renamed"))
    assert weights(tmp_path) == weights(whole("admm"))
