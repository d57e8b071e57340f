"""A search in a directory of its own, from the dense model to a plan, and the run that follows it."""

import dataclasses
import json

import hydra
import pytest
import torch
import transformers

from nxmiformer import cli
from nxmiformer.applied.convert import verify
from nxmiformer.export.packed import load_packed
from nxmiformer.jobs import compress as jobs
from nxmiformer.jobs import search as planner
from nxmiformer.jobs.compress import run
from nxmiformer.jobs.search import planned, search
from nxmiformer.models.source import Embedded
from nxmiformer.plan.compression import CompressionPlan
from nxmiformer.search.sensitivity import OutputError

TINY = [
    "name=tiny",
    "dense_cache=null",
    *("model.hidden=32", "model.heads=2", "model.intermediate=64", "model.layers=1"),
    *("task.train=96", "task.holdout=24", "task.validation=24"),
    *("train.batch_size=12", "train.cpu=true", "train.threads=1"),
    *("recipe.phases.dense.steps=4", "recipe.phases.admm.steps=3", "recipe.phases.finish.steps=2"),
    *("search.iterations=2", "search.sensitivity.foreseen.iterations=1", "search.examples=16", "search.uniform=9"),
]
HALVING = ["search.keep=2", "search.halving={_target_: nxmiformer.search.halving.Halving, steps: 2}"]
ANOTHER = "is a search of another configuration"


class Killed(BaseException):
    """What a kill looks like to the code that it stops."""


def without_figures(patch):
    patch.setattr(jobs, "write_report", lambda directory: None)
    patch.setattr(planner, "write_search", lambda directory: None)


@pytest.fixture(autouse=True)
def _no_figures(monkeypatch):
    """No report, which takes long to draw."""
    without_figures(monkeypatch)


def job(directory, *overrides):
    with hydra.initialize_config_module("nxmiformer.conf", version_base="1.3"):
        config = hydra.compose("config", [*TINY, *overrides])
    return cli.build(config, directory)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A whole job=search: what it gave, and its directory."""
    directory = tmp_path_factory.mktemp("searches") / "tiny"
    return search(job(directory, "job=search", "budget.ratio=0.11")), directory


@pytest.fixture
def measured(monkeypatch):
    """The layers that a sensitivity looked at."""
    looked, call = [], OutputError.__call__

    def counting(self, evidence, layer, sets):
        looked.append(layer)
        return call(self, evidence, layer, sets)

    monkeypatch.setattr(OutputError, "__call__", counting)
    return looked


@pytest.fixture
def trained(monkeypatch):
    """The directories in which a job's phases were trained."""
    places, train = [], planner.train

    def counting(job, stage, recipe, position, resumed):
        places.append((job.directory.name, list(recipe)[position.phase :]))
        return train(job, stage, recipe, position, resumed)

    monkeypatch.setattr(planner, "train", counting)
    monkeypatch.setattr(jobs, "train", counting)
    return places


def timeless(content):
    """A search.json without what every run has anew."""
    return {key: value for key, value in content.items() if key not in ("seconds", "epochs", "command")}


def test_a_search_leaves_its_plan_the_dense_model_and_valid_json(done):
    content, directory = done
    text = (directory / "search.json").read_text()
    assert json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON")) == content
    assert (content["asked"], content["accounting"]) == ("0.11", "all")
    plan = CompressionPlan.load(directory / "plan.json")
    assert plan.fingerprint == content["plan"]
    assert {name: str(spec.weight) for name, spec in plan.layers.items()} == content["best"]["sets"]
    assert {str(spec.activations) for spec in plan.layers.values()} == {"a8"}
    linear = {name for name, reason in plan.skipped.items() if reason != "it is an embedding"}
    assert linear == {"bert.pooler.dense", "classifier"}
    transformers.AutoModelForSequenceClassification.from_pretrained(directory / "dense")
    assert {path.name for path in directory.iterdir() if path.name.startswith((".", "report"))} == set()


def test_the_dense_score_of_a_search_is_on_the_examples_of_the_plans(tmp_path):
    """INT8 changes no prediction here, so that its score is the dense model's, on 7 of the 24 examples too."""
    content = search(
        job(tmp_path, "job=search", "budget.ratio=0.9", "search.examples=7", "search.candidates.sets=[int8]")
    )
    assert content["dense"] == content["best"]["score"]
    assert round(7 * content["dense"]) == pytest.approx(7 * content["dense"])


def test_the_plan_fits_its_budget_and_no_uniform_one_that_fits_diverges_less(done):
    content, directory = done
    storage = CompressionPlan.load(directory / "plan.json").storage()
    assert storage.total == content["best"]["bits"] <= content["budget"] == int(0.11 * storage.dense)
    uniform = [plan for plan in content["frontier"] if plan["name"].startswith("uniform")]
    assert len(uniform) == 9
    fitting = [plan for plan in uniform if plan["bits"] <= content["budget"]]
    assert fitting
    assert all(content["best"]["divergence"] <= plan["divergence"] for plan in fitting)


def test_the_same_seed_gives_the_same_plan_and_figures(done, tmp_path):
    content, directory = done
    again = search(job(tmp_path, "job=search", "budget.ratio=0.11"))
    assert (tmp_path / "plan.json").read_bytes() == (directory / "plan.json").read_bytes()
    assert timeless(again) == timeless(content)
    assert (tmp_path / "dense" / "model.safetensors").read_bytes() == (
        directory / "dense" / "model.safetensors"
    ).read_bytes()


def test_without_a_budget_a_job_is_planned_already(tmp_path):
    given = job(tmp_path)
    assert planned(given) is given
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def compressed(tmp_path_factory):
    """A compress job with a budget: its report, and its directory."""
    with pytest.MonkeyPatch.context() as patch:
        without_figures(patch)
        directory = tmp_path_factory.mktemp("compressed")
        return run(planned(job(directory, "budget.ratio=0.11"))), directory


def test_a_job_with_a_budget_runs_with_the_plan_that_was_searched(compressed, done):
    content, directory = compressed
    plan = CompressionPlan.load(directory / "plan.json")
    assert (directory / "plan.json").read_bytes() == (directory / "search" / "plan.json").read_bytes()
    assert plan == CompressionPlan.load(done[1] / "plan.json")
    assert content["plan"] == {"name": "searched@0.11", "fingerprint": plan.fingerprint}
    assert list(content["phases"]) == ["admm", "finish"]
    verify(load_packed(directory / "packed"), plan)
    assert content["storage"]["bytes"]["packed_weights"] * 8 <= 0.11 * content["storage"]["dense_bits"]
    assert content["model"]["name"] == "embedded BERT"


def test_the_run_goes_on_from_the_dense_model_of_the_search(compressed):
    content, directory = compressed
    for place in (directory, directory / "search"):
        found = transformers.AutoModelForSequenceClassification.from_pretrained(place / "dense").state_dict()
        expected = transformers.AutoModelForSequenceClassification.from_pretrained(directory / "dense").state_dict()
        assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert content["scores"].keys() == {"dense", "one_shot", "final", "packed"}


@pytest.mark.parametrize("ranges", ["token", "ema", "static"])
def test_the_file_of_a_whole_model_takes_what_it_may_and_little_less(tmp_path, ranges):
    limit = 60_000
    content = run(planned(job(tmp_path, f"budget.whole_model_bytes={limit}", f"plan.activations.ranges={ranges}")))
    size = (tmp_path / "packed" / "model.safetensors").stat().st_size
    assert limit * 0.9 <= size <= limit
    assert content["plan"]["name"] == f"searched@{limit} whole bytes"


@pytest.mark.parametrize("limit", [3_000, 2_500])
def test_the_packed_weights_take_the_bytes_that_they_may(tmp_path, limit):
    content = run(planned(job(tmp_path, f"budget.bytes={limit}", "plan.activations=null")))
    assert limit * 0.7 <= content["storage"]["bytes"]["packed_weights"] <= limit


# Mistakes, before any work.


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], r"a search needs a budget: budget\.ratio=\.\.\., budget\.bytes=\.\.\. or"),
        (["budget.ratio=0.001"], r"budget 0\.001 is too small: the least is budget\.ratio=0\."),
        (["budget.bytes=100"], r"budget 100 bytes is too small: the least is budget\.bytes=\d+$"),
        (["budget.whole_model_bytes=100"], "the rest of the model alone takes"),
        (["budget.ratio=0.1", "+search.candidates.pinned={*.nowhere: int8}"], "unknown pattern of layer names"),
        (["budget.ratio=0.1", "search.candidates.sets=['3:5']"], "no candidate is left for bert.encoder.layer.0"),
    ],
)
def test_what_cannot_be_searched_for_is_told_before_anything_is_trained(tmp_path, trained, overrides, message):
    with pytest.raises(ValueError, match=message):
        search(job(tmp_path / "run", "job=search", *overrides))
    assert trained == []


def test_a_plan_file_and_a_budget_contradict_each_other(done, tmp_path):
    with pytest.raises(ValueError, match=r"is a plan already: leave out the budget, or the path"):
        job(tmp_path, f"plan.path={done[1] / 'plan.json'}", "budget.ratio=0.1")


def test_a_job_without_a_search_cannot_search(tmp_path):
    with pytest.raises(ValueError, match="there is no search: give one, such as search=knapsack"):
        search(dataclasses.replace(job(tmp_path, "budget.ratio=0.1"), search=None))


# Killed, and resumed.


def killed(monkeypatch, where, name):
    """`name` of `where` is a kill."""

    def stop(*args, **given):
        raise Killed

    monkeypatch.setattr(where, name, stop)


@pytest.mark.parametrize("where", ["_content", "evidence_of"])
def test_a_search_that_was_killed_goes_on_without_measuring_again(
    done, tmp_path, monkeypatch, measured, trained, where
):
    options = ["job=search", "budget.ratio=0.11"]
    with monkeypatch.context() as patch:
        killed(patch, planner, where)
        with pytest.raises(Killed):
            search(job(tmp_path, *options))
    before = len(measured)
    content = search(job(tmp_path, *options, "resume=true"))
    assert (tmp_path / "plan.json").read_bytes() == (done[1] / "plan.json").read_bytes()
    assert len(measured) == len(set(measured)) == 6
    assert before == (6 if where == "_content" else 0)
    assert [phases for _, phases in trained] == [["dense"], []]
    assert content["best"] == done[0]["best"]
    assert content["dense"] == done[0]["dense"]


def finish(job):
    """What a compress job does."""
    return run(planned(job))


def weights(directory):
    return (directory / "packed" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("where", ["search", "run"])
def test_a_job_that_was_killed_in_its_search_or_after_it_is_resumed_to_the_same_bits(
    compressed, tmp_path, monkeypatch, measured, where
):
    options = ["budget.ratio=0.11"]
    with monkeypatch.context() as patch:
        killed(patch, *((planner, "_content") if where == "search" else (jobs, "verify")))
        with pytest.raises(Killed):
            finish(job(tmp_path, *options))
    finish(job(tmp_path, *options, "resume=true"))
    assert weights(tmp_path) == weights(compressed[1])
    assert len(measured) == 6


def test_a_search_of_another_configuration_is_not_gone_on_from_and_the_difference_is_shown(compressed, measured):
    _, directory = compressed
    before = (directory / "search" / "search.json").read_text()
    for change, line in [
        ("budget.ratio=0.2", "budget.ratio: 0.11 in the search there, 0.2 now"),
        ("seed=1", "seed: 0 in the search there, 1 now"),
        ("search.keep=2", "search.keep: 3 in the search there, 2 now"),
        ("recipe.phases.dense.steps=5", "phases.dense.steps: 4 in the search there, 5 now"),
    ]:
        with pytest.raises(ValueError, match=ANOTHER) as error:
            planned(job(directory, "budget.ratio=0.11", change, "resume=true"))
        assert line in [shown.strip() for shown in str(error.value).splitlines()[1:]]
    assert (directory / "search" / "search.json").read_text() == before
    assert measured == []


def test_what_a_search_does_not_look_at_may_change(compressed, measured):
    _, directory = compressed
    going_on = planned(job(directory, "budget.ratio=0.11", "recipe.phases.admm.steps=9", "resume=true"))
    assert going_on.recipe.phases["admm"].steps == 9
    assert measured == []


# Trials.


@pytest.fixture(scope="module")
def halved(tmp_path_factory):
    """A job=search that tells its plans apart by training: what it gave, and its directory."""
    with pytest.MonkeyPatch.context() as patch:
        without_figures(patch)
        directory = tmp_path_factory.mktemp("halved")
        return search(job(directory, "job=search", "budget.ratio=0.11", *HALVING)), directory


def test_every_trial_is_a_run_of_so_many_steps_scored_on_the_holdout(halved):
    content, directory = halved
    scores = {}
    for place in (directory / "trials").iterdir():
        report = json.loads((place / "report.json").read_text())
        fingerprint, steps = place.name.split("-")
        assert report["plan"]["fingerprint"] == fingerprint
        assert report["report_on"] == "holdout"
        assert sum(phase["steps"] for phase in report["phases"].values()) == int(steps)
        scores.setdefault(int(steps), []).append(report["scores"]["packed"]["accuracy"])
    told = {}
    for plan in content["plans"]:
        for steps, score in plan["trials"]:
            told.setdefault(steps, []).append(score)
    assert {steps: sorted(each) for steps, each in scores.items()} == {s: sorted(each) for s, each in told.items()}
    assert len(told[2]) == len(content["plans"]) >= 2


def test_trials_are_not_run_again_where_the_search_is_resumed(halved, trained):
    content, directory = halved
    again = search(job(directory, "job=search", "budget.ratio=0.11", *HALVING, "resume=true"))
    assert trained == [(directory.name, [])]
    assert again["best"] == content["best"]
    assert again["plans"] == content["plans"]


def test_trials_of_an_earlier_search_are_none_of_a_new_one(halved, trained):
    content, directory = halved
    search(job(directory, "job=search", "budget.ratio=0.11", *HALVING))
    assert len(trained) == 1 + sum(len(plan["trials"]) for plan in content["plans"])


def test_a_plan_that_was_chosen_by_training_depends_on_how_it_was_trained(halved, tmp_path):
    _, directory = halved
    (tmp_path / "search").symlink_to(directory)
    options = ["budget.ratio=0.11", *HALVING, "resume=true", "job=compress"]
    change = "recipe.phases.admm.optimizer.lr=0.1"
    with pytest.raises(ValueError, match=ANOTHER) as error:
        planned(job(tmp_path, *options, change))
    assert "phases.admm.optimizer.lr: 0.0004 in the search there, 0.1 now" in str(error.value)


# Layers that are stored the other way round.


class Gpt(Embedded):
    """A GPT-2 with the words of the embedded task."""

    def model(self, task, tokenizer, seed):
        torch.manual_seed(seed)
        tokens = {f"{kind}_token_id": tokenizer.pad_token_id for kind in ("bos", "eos", "pad")}
        config = transformers.GPT2Config(
            vocab_size=len(tokenizer), n_embd=32, n_layer=1, n_head=2, num_labels=2, **tokens
        )
        return transformers.GPT2ForSequenceClassification(config)


def test_layers_that_store_their_weight_the_other_way_round_are_searched_and_packed(tmp_path):
    """Only the last layer has 128 columns; another has as many rows."""
    candidates = ["search.candidates.sets=[int8g128,int4]", "+search.candidates.pinned={*.mlp.c_proj: int8g128}"]
    given = job(tmp_path, "budget.ratio=0.2", *candidates, "plan.activations=null")
    content = run(planned(dataclasses.replace(given, source=Gpt())))
    plan = CompressionPlan.load(tmp_path / "plan.json")
    assert {name.rpartition(".h.0.")[2]: spec.shape for name, spec in plan.layers.items()} == {
        "attn.c_attn": (96, 32),
        "attn.c_proj": (32, 32),
        "mlp.c_fc": (128, 32),
        "mlp.c_proj": (32, 128),
    }
    assert all(spec.transposed for spec in plan.layers.values())
    coarse = [name for name, spec in plan.layers.items() if str(spec.weight) == "int8g128"]
    assert coarse == ["transformer.h.0.mlp.c_proj"]
    assert content["storage"]["bytes"]["packed_weights"] * 8 <= 0.2 * content["storage"]["dense_bits"]
