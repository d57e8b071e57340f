import json
import logging

import hydra
import pytest
import torch
from safetensors.torch import load_file

from nxmiformer import cli
from nxmiformer.applied.convert import verify
from nxmiformer.export.packed import load_packed
from nxmiformer.jobs.compress import run
from nxmiformer.jobs.provenance import revision
from nxmiformer.plan.compression import CompressionPlan
from nxmiformer.tasks.task import Chance
from nxmiformer.train.recipe import Recipe

TINY = [
    "name=tiny",
    "dense_cache=null",
    *("model.hidden=32", "model.heads=2", "model.intermediate=64", "model.layers=1"),
    *("task.train=96", "task.holdout=24", "task.validation=48"),
    *("train.batch_size=12", "train.evaluate_every=2", "train.cpu=true"),
]
STEPS = {"dense": 4, "admm": 4, "finish": 2}


def job(directory, *overrides, recipe="admm"):
    steps = [f"recipe.phases.{phase}.steps={count}" for phase, count in STEPS.items() if recipe == "admm"]
    with hydra.initialize_config_module("nxmiformer.conf", version_base="1.3"):
        config = hydra.compose("config", [*TINY, f"recipe={recipe}", *steps, *overrides])
    return cli.build(config, directory)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A whole run: what it gave, and its directory."""
    directory = tmp_path_factory.mktemp("runs") / "tiny"
    return run(job(directory, "seed=3")), directory


def test_every_file_that_a_run_promises_is_there(done):
    _, directory = done
    files = {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}
    expected = {"report.json", "report.html", "report.md", "plan.json", "metrics.jsonl"}
    expected |= {f"packed/{name}" for name in ("packed.json", "model.safetensors", "plan.json", "config.json")}
    expected |= {"packed/tokenizer.json", "dense/model.safetensors", "dense/config.json"}
    assert expected <= files
    figures = [path for path in (directory / "figures").iterdir() if path.suffix == ".png"]
    assert len(figures) >= 2
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in figures)
    assert not [name for name in files if ".nx-" in name or name.startswith("packed/.")]


def test_the_report_is_the_result(done):
    content, directory = done
    assert json.loads((directory / "report.json").read_text()) == content
    assert (content["name"], content["seed"], content["report_on"]) == ("tiny", 3, "validation")
    sizes = {key: content["task"][key] for key in ("train", "holdout", "validation")}
    assert sizes == {"train": 96, "holdout": 24, "validation": 48}


def test_the_reported_storage_is_the_plans_and_that_of_the_files(done):
    content, directory = done
    plan, told = CompressionPlan.load(directory / "plan.json"), content["storage"]
    storage = plan.storage()
    bits = [told[f"{part}_bits"] for part in ("dense", "value", "index", "scale", "rest")]
    assert bits == [storage.dense, storage.values, storage.indices, storage.scales, storage.rest]
    assert told["compression"] == storage.compression
    assert told["bytes"]["packed_weights"] == storage.total / 8
    for part in ("dense", "packed"):
        files = [path for path in (directory / part).rglob("*") if path.is_file() and path.name != "README.md"]
        size = sum(path.stat().st_size for path in files)
        assert told["bytes"][f"{part}_model"] == size
    assert content["plan"] == {"name": "2of4_int4", "fingerprint": plan.fingerprint}


def test_what_the_plan_leaves_dense_is_told_by_the_key_that_packs_it(done):
    content, directory = done
    weights = load_file(directory / "dense" / "model.safetensors")
    head = ("pooler.dense.weight", "classifier.weight")
    bits = {
        "embeddings": sum(32 * w.numel() for name, w in weights.items() if name.endswith("embeddings.weight")),
        "head": sum(32 * w.numel() for name, w in weights.items() if name.endswith(head)),
    }
    assert content["storage"]["left"] == bits
    assert sum(bits.values()) < content["storage"]["rest_bits"]


def test_the_seconds_of_a_run_are_by_the_clock_and_a_step_is_timed_without_what_is_around_it(done):
    content, phases = done[0], done[0]["phases"].values()
    assert content["seconds"] > sum(phase["seconds"] for phase in phases)
    assert all(phase["steps"] * phase["step_seconds"] < phase["seconds"] for phase in phases)


def test_dense_one_shot_final_and_packed_are_scored_and_packed_is_final(done):
    scores = done[0]["scores"]
    assert scores.keys() == {"dense", "one_shot", "final", "packed"}
    assert all(0 <= score["accuracy"] <= 1 and (score["accuracy"] * 48).is_integer() for score in scores.values())
    assert scores["packed"] == scores["final"]


def test_what_is_kept_is_a_share_of_a_dense_score_that_is_above_chance_and_else_nothing(done, tmp_path, caplog):
    caplog.set_level(logging.INFO, "nxmiformer")
    content, directory = done
    blind = content["chance"]["score"] + 2 * content["chance"]["error"]
    assert content["chance"] == {"score": 0.5, "error": pytest.approx(0.25 / 12**0.5), "better": "higher"}
    assert content["scores"]["dense"]["accuracy"] <= blind
    assert content["retention"] is None
    for name in ("report.md", "report.html", "packed/README.md"):
        assert "the dense model is no better than chance" in (directory / name).read_text(encoding="utf-8")
    sure = job(tmp_path / "run", "recipe.phases.dense.steps=0", recipe="one_shot")
    object.__setattr__(sure.task, "chance", lambda labels: Chance(0.0, 0.0))
    content = run(sure)
    assert content["retention"] == content["scores"]["final"]["accuracy"] / content["scores"]["dense"]["accuracy"]
    assert "no better than chance" not in caplog.text


def test_the_packed_models_card_has_the_runs_scores_and_how_to_run_it_again(done):
    content, directory = done
    card = (directory / "packed" / "README.md").read_text(encoding="utf-8")
    for name, key in (("dense", "dense"), ("one-shot, without training", "one_shot"), ("packed", "packed")):
        assert f"| accuracy, {name} | {100 * content['scores'][key]['accuracy']:.2f} % |" in card
    assert "| retained of the dense score | –: the dense model is no better than chance |" in card
    assert f"| command | `{content['command']}` |" in card
    assert content["revision"] in (None, *card.split())


def test_every_weight_of_the_packed_model_is_a_point_of_its_set_and_is_reported(done):
    content, directory = done
    plan = CompressionPlan.load(directory / "plan.json")
    verify(load_packed(directory / "packed"), plan)
    assert content["layers"].keys() == plan.layers.keys()
    assert all(0 < layer["kept"] <= 0.5 for layer in content["layers"].values())
    assert all(layer["error"] > 0 and layer["projection_error"] > 0 for layer in content["layers"].values())


def test_every_phase_takes_its_steps_and_leaves_a_row_for_each(done):
    content, directory = done
    assert {name: phase["steps"] for name, phase in content["phases"].items()} == STEPS
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert [(row["phase"], row["step"]) for row in rows] == [
        (phase, step) for phase, count in STEPS.items() for step in range(1, count + 1)
    ]
    assert all(row["loss"] > 0 for row in rows)


def test_a_run_for_a_choice_is_scored_on_the_holdout_and_needs_no_git(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    content = run(job(tmp_path / "run", "report_on=holdout", "recipe.phases.dense.steps=1", recipe="one_shot"))
    assert content["report_on"] == "holdout"
    assert content["revision"] is None
    assert all((score["accuracy"] * 24).is_integer() for score in content["scores"].values())
    assert content["scores"]["packed"] == content["scores"]["final"] == content["scores"]["one_shot"]


def test_the_revision_is_none_outside_a_checkout(monkeypatch, tmp_path):
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "nowhere"))
    assert revision() is None


def test_a_recipe_that_never_compresses_is_a_clear_error(tmp_path):
    whole = job(tmp_path / "run", "recipe.phases.dense.steps=0")
    with pytest.raises(ValueError, match=r"a recipe needs a phase that compresses; this one has \['dense'\]"):
        Recipe({"dense": whole.recipe.phases["dense"]})


def test_a_plan_file_that_does_not_fit_is_refused_before_training(tmp_path):
    other = job(tmp_path / "other", "model.layers=2")
    model = other.source.model(other.task, other.source.tokenizer(other.task), 0)
    other.planning(model).save(tmp_path / "plan.json")
    with pytest.raises(ValueError, match="the model has no such layer"):
        run(job(tmp_path / "run", f"plan.path={tmp_path / 'plan.json'}"))
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_the_same_seed_gives_the_same_packed_weights_and_another_gives_others(done, tmp_path):
    _, directory = done
    run(job(tmp_path / "again", "seed=3"))
    run(job(tmp_path / "other", "seed=4"))
    original, again, other = (
        (place / "packed" / "model.safetensors").read_bytes()
        for place in (directory, tmp_path / "again", tmp_path / "other")
    )
    assert again == original
    assert other != original
    assert torch.get_default_dtype() == torch.float32
