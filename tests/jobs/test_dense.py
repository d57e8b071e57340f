"""The dense model that runs share: to take it is to have trained it."""

import dataclasses
import json
import threading

import hydra
import pytest
import torch
from torch import nn

from nxmiformer import cli
from nxmiformer.files import alone
from nxmiformer.jobs import compress, dense
from nxmiformer.jobs.dense import shared
from nxmiformer.jobs.opening import opened
from nxmiformer.jobs.search import nominal
from nxmiformer.models.source import Embedded

TINY = [
    "name=tiny",
    *("model.hidden=16", "model.heads=2", "model.intermediate=32", "model.layers=1"),
    *("task.train=48", "task.holdout=12", "task.validation=12"),
    *("train.batch_size=12", "train.evaluate_every=2", "train.cpu=true", "train.threads=1"),
    *("recipe.phases.dense.steps=4", "recipe.phases.admm.steps=2", "recipe.phases.finish.steps=1"),
]


class Dropping(Embedded):
    """The embedded BERT with dropout, so that what comes after depends on the random generators too."""

    def model(self, task, tokenizer, seed):
        model = super().model(task, tokenizer, seed)
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.1
        return model


def job(directory, cache, *overrides, source=Dropping):
    with hydra.initialize_config_module("nxmiformer.conf", version_base="1.3"):
        config = hydra.compose("config", [*TINY, f"dense_cache={cache}", *overrides])
    built = cli.build(config, directory)
    return dataclasses.replace(built, source=source(**{**vars(built.source), "name": "embedded BERT"}))


@pytest.fixture(autouse=True)
def _no_figures(monkeypatch):
    monkeypatch.setattr(compress, "write_report", lambda directory: None)


def result(directory):
    """All that a run comes to, without the times that it took: weights, figures, scores, generators."""
    report = json.loads((directory / "report.json").read_text())
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    (state,) = directory.glob("checkpoints/latest-*/state.pt")
    rng = torch.load(state, weights_only=True)["rng"]
    steps = {name: (phase["steps"], phase["gap"]) for name, phase in report["phases"].items()}
    return {
        "packed": (directory / "packed" / "model.safetensors").read_bytes(),
        "dense": (directory / "dense" / "model.safetensors").read_bytes(),
        "rows": [{key: value for key, value in row.items() if key != "seconds"} for row in rows],
        "report": {key: report[key] for key in ("scores", "layers", "storage", "plan")},
        "phases": steps,
        "rng": (rng["torch"].tolist(), [str(each) for each in rng["numpy"]], rng["python"]),
    }


def test_a_run_that_takes_its_dense_model_ends_in_the_bits_of_one_that_trains_it(tmp_path, capsys):
    cache = tmp_path / "cache"
    compress.run(job(tmp_path / "alone", "null"))
    compress.run(job(tmp_path / "first", cache))
    compress.run(job(tmp_path / "int8", cache, "plan=int8", "plan.activations=null"))
    capsys.readouterr()
    compress.run(job(tmp_path / "second", cache))
    (place,) = cache.iterdir()
    assert f"dense model taken from {place}" in capsys.readouterr().out
    whole = result(tmp_path / "alone")
    assert result(tmp_path / "first") == whole
    assert result(tmp_path / "second") == whole
    assert result(tmp_path / "int8")["dense"] == whole["dense"]
    assert result(tmp_path / "int8")["packed"] != whole["packed"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Where the dense model of a job with these overrides would be; the plan is the search's where it is asked for."""
    root = tmp_path_factory.mktemp("places")

    def find(*overrides, searching=False, source=Dropping, threads=1):
        made = job(root / "run", root / "cache", f"train.threads={threads}", *overrides, source=source)
        recipe = {name: phase for name, phase in made.recipe.phases.items() if name == "dense"}
        planning = (lambda model: nominal(made, model)) if searching else made.planning
        with opened(made, planning) as (stage, *_), shared(made, stage, recipe) as kept:
            return kept and kept.place.name

    yield find
    torch.set_num_threads(1)


def test_what_changes_no_dense_model_shares_it(place):
    first = place()
    assert place("name=other", "plan=2of4_int8", "recipe.phases.admm.steps=9") == first
    assert place("plan.activations=null", "train.checkpoint_every=1", "report_on=holdout") == first
    assert place(searching=True) == first


CHANGES = {
    "seed": ["seed=1"],
    "recipe": ["recipe.phases.dense.optimizer.lr=1e-5"],
    "batches": ["train.batch_size=6"],
    "layers": ["plan.embeddings=int8"],
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_decides_the_dense_model_has_a_place_of_its_own(place, change):
    assert place(*change) not in (place(), None)


def test_so_has_what_computes_and_where_and_by_which_code(place, monkeypatch):
    first = place()
    assert place(source=Embedded) != first  # without dropout
    assert place(threads=2) != first
    monkeypatch.setattr(dense, "code", lambda: "another")
    assert place() != first


def test_phases_without_steps_or_without_a_description_are_not_shared(place, tmp_path):
    assert place("recipe.phases.dense.steps=0") is None
    made = dataclasses.replace(job(tmp_path, tmp_path / "cache"), config={})
    phases = {"dense": made.recipe.phases["dense"]}
    with opened(made, made.planning) as (stage, *_), shared(made, stage, phases) as kept:
        assert kept is None


@pytest.fixture
def kept(tmp_path):
    """A job and the place that its dense model is in."""
    made = job(tmp_path / "run", tmp_path / "cache")
    phases = {"dense": made.recipe.phases["dense"]}
    with opened(made, made.planning) as (stage, *_), shared(made, stage, phases) as found:
        found.keep(stage, dense.Position(phase=1, total_step=4), [])
    return made, phases, found.place


def test_a_damaged_dense_model_is_trained_anew(kept, capsys):
    made, phases, place = kept
    (weights,) = place.rglob("model.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with opened(made, made.planning) as (stage, *_), shared(made, stage, phases) as found:
        before = {name: tensor.clone() for name, tensor in stage.model.state_dict().items()}
        assert found.take(stage) is None
        assert all(torch.equal(tensor, before[name]) for name, tensor in stage.model.state_dict().items())
        assert "is trained again" in capsys.readouterr().out
        found.keep(stage, dense.Position(phase=1, total_step=4), [])
        assert found.take(stage) is not None


def test_who_comes_while_another_trains_waits_for_it(kept, monkeypatch, capsys):
    made, phases, place = kept
    ended, holding = threading.Event(), threading.Event()

    def hold():
        with alone(place):
            holding.set()
            ended.wait(60)

    other = threading.Thread(target=hold)
    other.start()
    assert holding.wait(60)
    monkeypatch.setattr(dense.time, "sleep", lambda seconds: (ended.set(), other.join()))
    with opened(made, made.planning) as (stage, *_), shared(made, stage, phases) as found:
        assert found.take(stage) is not None
    assert f"waiting for the dense model that another run is training, in {place}" in capsys.readouterr().out


def test_where_no_dense_model_can_be_kept_the_run_goes_on_without(tmp_path, capsys):
    (tmp_path / "cache").write_text("a file")
    made = job(tmp_path / "run", tmp_path / "cache")
    with opened(made, made.planning) as (stage, *_), shared(made, stage, {"dense": made.recipe.phases["dense"]}) as it:
        assert it is None
    assert "the dense model is not shared with other runs" in capsys.readouterr().out
