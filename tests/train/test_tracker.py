import json

import pytest
import torch
from kills import moments
from matplotlib.figure import Figure

from nxmiformer.console.display import Display
from nxmiformer.errors import FileError
from nxmiformer.plan.compression import CompressionPlan, LayerSpec
from nxmiformer.sets import NM, Grid, Then
from nxmiformer.train.tracker import Jsonl, Several, Tracker, Wandb


def rows(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def write(directory, steps, resumed_at=None, **more):
    with Jsonl(directory, resumed_at) as tracker:
        for step in steps:
            tracker.log({"total_step": step, "loss": step / 4, **more})


def test_each_row_is_one_line_of_json_that_is_on_disk_at_once(tmp_path):
    with Jsonl(tmp_path) as tracker:
        tracker.log({"total_step": 1, "phase": "dense", "loss": 0.5})
        assert rows(tmp_path) == [{"total_step": 1, "phase": "dense", "loss": 0.5}]


def test_a_row_of_a_run_whose_directory_has_vanished_is_an_error_and_makes_no_new_one(tmp_path):
    (tmp_path / "run").mkdir()
    tracker = Jsonl(tmp_path / "run")
    tracker.log({"total_step": 1})
    (tmp_path / "run").rename(tmp_path / "moved")
    with pytest.raises(FileError, match=r"metrics.jsonl cannot be written: .* has it been moved or removed"):
        tracker.log({"total_step": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["moved"]


@pytest.mark.parametrize("at", [None, 2, 3])
def test_a_kill_while_the_rows_are_written_anew_leaves_all_of_them(tmp_path, at):
    for moment in moments(tmp_path):
        write(tmp_path, [1, 2, 3])
        with moment:
            Jsonl(tmp_path, at)
        assert moment.reached == (len(rows(tmp_path)) == 3) or at == 3
        write(tmp_path, [4], resumed_at=at)
        assert [row["total_step"] for row in rows(tmp_path)] == [*range(1, (at or 0) + 1), 4]
    assert moment.number > 2


def test_a_new_run_starts_the_file_anew(tmp_path):
    write(tmp_path, [1, 2, 3])
    write(tmp_path, [1])
    assert [row["total_step"] for row in rows(tmp_path)] == [1]


@pytest.mark.parametrize("at", [0, 2, 3, 9])
def test_a_resumed_run_drops_the_rows_of_the_steps_that_it_takes_again(tmp_path, at):
    write(tmp_path, range(1, 6), which="first")
    write(tmp_path, range(at + 1, 8), resumed_at=at, which="second")
    kept = [row for row in rows(tmp_path) if row["which"] == "first"]
    assert [row["total_step"] for row in kept] == list(range(1, min(at, 5) + 1))
    steps = [row["total_step"] for row in rows(tmp_path)]
    assert steps == sorted(set(steps))


@pytest.mark.parametrize("rest", ['{"total_step": 2, "lo', "{}", '{"loss": 1.0}', "\x00\x00"])
def test_a_line_that_a_kill_cut_short_is_dropped(tmp_path, rest):
    write(tmp_path, [1])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(rest)
    write(tmp_path, [2], resumed_at=5)
    assert [row["total_step"] for row in rows(tmp_path)] == [1, 2]


def test_resuming_without_a_file_starts_one(tmp_path):
    write(tmp_path, [4], resumed_at=3)
    assert [row["total_step"] for row in rows(tmp_path)] == [4]


def test_a_figure_that_is_not_a_number_is_refused(tmp_path):
    with Jsonl(tmp_path) as tracker, pytest.raises(ValueError, match="JSON"):
        tracker.log({"total_step": 1, "loss": float("nan")})
    assert rows(tmp_path) == []


class Recording(Tracker):
    def __init__(self):
        self.seen = []

    def log(self, row):
        self.seen.append(row)

    def report(self, directory, name="report.json"):
        self.seen.append(directory / name)

    def finish(self, failed):
        self.seen.append(failed)


def test_several_trackers_all_get_everything(tmp_path):
    trackers = [Recording(), Recording()]
    with Several(trackers) as several:
        several.log({"total_step": 1})
        several.report(tmp_path)
        several.report(tmp_path, "search.json")
    reported = [tmp_path / "report.json", tmp_path / "search.json"]
    assert trackers[0].seen == trackers[1].seen == [{"total_step": 1}, *reported, False]


def fail(tracker):
    with tracker:
        raise KeyError("what went wrong")


def test_a_run_that_fails_is_finished_as_failed(tmp_path):
    tracker = Recording()
    with pytest.raises(KeyError, match="what went wrong"):
        fail(Several([tracker]))
    assert tracker.seen == [True]


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """Calls of wandb's own `init` and `finish`, which are made all the same, offline."""
    wandb = pytest.importorskip("wandb")
    for name in ("CACHE", "CONFIG", "DATA", "ARTIFACT"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / name))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB__DISABLE_STATS", "true")
    calls = {"init": [], "finish": []}
    init = wandb.init

    def recording_init(**options):
        calls["init"].append(options)
        run = init(**options)
        finish = run.finish

        def recording_finish(**how):
            calls["finish"].append(how)
            finish(**how)

        run.finish = recording_finish
        return run

    monkeypatch.setattr(wandb, "init", recording_init)
    yield calls
    wandb.teardown()


CONFIG = {"seed": 0, "train": {"clip": None, "batch_size": 4}, "names": ["a", "b"]}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_a_job_is_one_wandb_run_with_a_plain_config_the_same_run_when_resumed_and_failed_when_it_failed(
    tmp_path, offline
):
    pytest.importorskip("wandb")
    job = tmp_path / "job"
    job.mkdir()
    tracker = Wandb(job, CONFIG, {"project": "test", "mode": "offline"})
    assert dict(tracker.run.config) == CONFIG
    assert tracker.run.settings.mode == "offline"
    identity = tracker.run.id
    assert identity == (job / "wandb_id").read_text()
    tracker.log({"total_step": 1, "loss": 0.5})
    with pytest.raises(KeyError, match="what went wrong"):
        fail(tracker)
    assert offline["finish"] == [{"exit_code": 1}]

    with Wandb(job, CONFIG, {"project": "test", "mode": "offline"}) as resumed:
        assert resumed.run.id == identity
        resumed.log({"total_step": 2, "loss": 0.25})
        figures = job / "figures"
        figures.mkdir()
        (job / "report.json").write_text(
            json.dumps({"name": "job", "scores": {"final": {"accuracy": 0.5}}, "layers": {}})
        )
        CompressionPlan({}).save(job / "plan.json")
        resumed.report(job)
        assert resumed.run.summary["scores"]["final"]["accuracy"] == 0.5
    assert offline["finish"] == [{"exit_code": 1}, {"exit_code": 0}]
    assert [call["id"] for call in offline["init"]] == [identity] * 2
    assert all(type(call["config"]) is dict and call["resume"] == "allow" for call in offline["init"])
    folders = [path.name for path in (job / "wandb").glob("offline-run-*")]  # wandb numbers two of the same second
    assert folders
    assert all(identity in name.split("-") for name in folders)

    other = tmp_path / "other"
    other.mkdir()
    with Wandb(other, CONFIG, {"project": "test", "mode": "offline"}) as another:
        assert another.run.id != identity


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_a_search_becomes_images_and_a_summary_without_what_they_show(tmp_path, offline, monkeypatch):
    best = {"name": "knapsack 1", "bits": 8000, "score": 0.75}
    content = {"budget": 8192, "dense": 0.9, "best": best, "plans": [best], "damages": {"block.0.query": {"int8": 0.1}}}
    (tmp_path / "search.json").write_text(json.dumps(content))
    (tmp_path / "figures").mkdir()
    Figure((1, 1)).savefig(tmp_path / "figures" / "frontier.png")
    logged = {}
    with Wandb(tmp_path, CONFIG, {"project": "test", "mode": "offline"}) as tracker:
        monkeypatch.setattr(tracker.run, "log", logged.update)
        tracker.report(tmp_path, "search.json")
        summary = tracker.run.summary
        assert (summary["budget"], summary["best"]["score"]) == (8192, 0.75)
        assert not {"plans", "damages"} & set(summary.keys())
    assert set(logged) == {"frontier"}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_the_report_becomes_a_table_of_its_layers_and_images_beside_the_summary(tmp_path, offline, monkeypatch):
    joint, shape = Then(NM(2, 4), Grid(4)), (16, 64)
    plan = CompressionPlan({"block.0.query": LayerSpec(joint, shape), "block.1.query": LayerSpec(Grid(8), shape)})
    plan.save(tmp_path / "plan.json")
    found = {"error": 0.25, "gap": 0.01, "kept": 0.5}
    layers = {
        name: {"set": str(spec), **found, "gap": None if "1" in name else 0.01} for name, spec in plan.layers.items()
    }
    content = {"scores": {"packed": {"accuracy": 0.5}}, "layers": layers}
    (tmp_path / "report.json").write_text(json.dumps(content))
    (tmp_path / "figures").mkdir()
    figure = Figure((1, 1))
    figure.savefig(tmp_path / "figures" / "heatmap.png")
    logged = {}
    with Wandb(tmp_path, CONFIG, {"project": "test", "mode": "offline", "group": "study"}) as tracker:
        assert tracker.run.group == "study"
        log = tracker.run.log
        monkeypatch.setattr(tracker.run, "log", lambda row: (logged.update(row), log(row)))
        tracker.report(tmp_path)
        assert tracker.run.summary["layers"]["block.0.query"]["set"] == "2:4+int4"
    assert set(logged) == {"per_layer", "heatmap"}
    table = logged["per_layer"]
    assert table.columns == ["layer", "set", "bits per weight", "error", "gap", "kept"]
    stored = {
        name: 8
        * sum(part.nbytes for part in spec.weight.pack(spec.weight.project(torch.ones(shape))).values())
        / (16 * 64)
        for name, spec in plan.layers.items()
    }
    assert table.data == [
        ["block.0.query", "2:4+int4", stored["block.0.query"], 0.25, 0.01, 0.5],
        ["block.1.query", "int8", stored["block.1.query"], 0.25, None, 0.5],
    ]


def test_wandb_that_is_not_installed_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(ValueError, match=r"pip install nxmiformer\[wandb\]"):
        Wandb(tmp_path, CONFIG, {})


@pytest.mark.parametrize("mode", ["offline", "disabled"])
@pytest.mark.parametrize("asked", [None, "online"])
def test_wandb_mode_counts_where_the_configuration_names_none_and_is_told(tmp_path, monkeypatch, capsys, mode, asked):
    wandb, began = pytest.importorskip("wandb"), []
    monkeypatch.setattr(wandb, "init", lambda **options: began.append(options) or Began())
    monkeypatch.setenv("WANDB_MODE", mode)
    Wandb(tmp_path, CONFIG, {"project": "test", "mode": asked}, Display())
    (options,) = began
    assert options["mode"] == asked  # of None, wandb takes that of the environment
    assert (f"Weights & Biases is {mode}: " in capsys.readouterr().err) == (asked is None)


class Began:
    def define_metric(self, *_, **__):
        pass


def test_a_run_that_wandb_cannot_begin_is_an_error_with_what_to_do(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")

    def refuse(**_):
        raise wandb.errors.UsageError("No API key configured.")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(ValueError, match=r"No API key configured.*wandb login.*WANDB_MODE=offline"):
        Wandb(tmp_path, CONFIG, {})
