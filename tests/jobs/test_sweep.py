"""Sweeps: what fails does not stop them, what is finished is not run again, and each launcher runs them."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import hydra
import pytest
import torch
from hydra.errors import MissingConfigException

from nxmiformer import cli
from nxmiformer.jobs import compress as jobs

SIZES = ["model.hidden=32", "model.heads=2", "model.intermediate=64", "model.layers=1"]
SIZES += ["task.train=48", "task.holdout=24", "task.validation=24"]
TINY = [*SIZES, "recipe=one_shot", "recipe.phases.dense.steps=2", "train.batch_size=12", "train.cpu=true"]
UNDRAWN = "from nxmiformer.report import document; document.figures_of = lambda run: {}"
MAIN = [sys.executable, "-c", f"{UNDRAWN}; from nxmiformer.cli import main; main()"]


@pytest.fixture(autouse=True)
def _threads():
    """The number of threads as it was."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def command(monkeypatch, tmp_path, capsys):
    """Run the console script here: exit status, and what it wrote to stderr."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["nxmiformer", *words, *TINY])
        monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
        monkeypatch.chdir(tmp_path)
        try:
            cli.main()
        except SystemExit as end:
            return end.code, capsys.readouterr().err
        return 0, capsys.readouterr().err

    return call


@pytest.fixture
def sweep(command, tmp_path):
    """Run a sweep in `tmp_path / "sweep"`, a batch for each job."""

    def call(*words):
        return command("-m", "hydra.sweep.dir=sweep", "hydra.sweeper.max_batch_size=1", *words)

    return call


def written(directory):
    """When each file below the directory was written, but for what marks the start of a job."""
    files = [
        path for path in sorted(directory.rglob("*")) if path.is_file() and not {".hydra", ".lock"} & {*path.parts}
    ]
    return {path.relative_to(directory).as_posix(): path.stat().st_mtime_ns for path in files}


def everything(directory):
    """Every file and directory below the directory: its bytes, and when it was written."""
    return {
        path.relative_to(directory).as_posix(): (path.is_file() and path.read_bytes(), path.stat().st_mtime_ns)
        for path in [directory, *directory.rglob("*")]
        if path.name != ".lock" and path != directory
    }


def read(path):
    return json.loads(path.read_text())


def test_a_failed_job_does_not_stop_the_others_and_is_named_and_runs_again_where_the_others_do_not(sweep, tmp_path):
    place = tmp_path / "sweep"
    status, told = sweep("seed=0,abc,1")
    assert status == 1
    message = "seed=abc: its value must be of type int"
    assert read(place / "1" / "failed.json") == {"error": "ValueError", "message": message}
    (line,) = [line for line in told.splitlines() if line.startswith("failed: ")]
    assert line.startswith("failed: sweep/1: seed=abc ")
    assert told.splitlines()[-1] == f"  ValueError: {message}"
    assert [read(place / name / "report.json")["seed"] for name in ("0", "2")] == [0, 1]
    assert len(list(place.rglob("failed.json"))) == 1

    before = {name: written(place / name) for name in ("0", "2")}
    assert sweep("seed=0,5,1", "resume=true")[0] == 0
    assert {name: written(place / name) for name in before} == before
    assert read(place / "1" / "report.json")["seed"] == 5
    assert not list(place.rglob("failed.json"))


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("train.clip=7.0", "config.train.clip: 1.0 in the finished job, 7.0 now"),
        ("seed=4", "seed: 3 in the finished job, 4 now"),
        ("report_on=holdout", "report_on: 'validation' in the finished job, 'holdout' now"),
    ],
)
def test_a_finished_job_of_another_configuration_is_refused_and_kept(sweep, tmp_path, change, line):
    assert sweep("seed=3")[0] == 0
    before = everything(tmp_path / "sweep" / "0")
    status, told = sweep(*([] if "seed" in change else ["seed=3"]), change, "resume=true")
    assert status == 1
    assert "sweep/0 belongs to another job; give this job another directory" in told
    assert line in [shown.strip() for shown in told.splitlines()]
    assert everything(tmp_path / "sweep" / "0") == before


def test_a_finished_job_is_refused_where_its_plan_file_has_changed(sweep, tmp_path):
    assert sweep("plan=2of4_int4")[0] == 0
    plan = (tmp_path / "sweep" / "0" / "plan.json").read_text()
    (tmp_path / "plan.json").write_text(plan)
    assert sweep("plan.path=plan.json", "hydra.sweep.dir=filed")[0] == 0
    assert sweep("plan.path=plan.json", "hydra.sweep.dir=filed", "resume=true") == (0, "")
    (tmp_path / "plan.json").write_text(plan.replace('"bits": 4', '"bits": 3'))
    status, told = sweep("plan.path=plan.json", "hydra.sweep.dir=filed", "resume=true")
    assert status == 1
    assert "  plan: '" in told


def test_a_sweep_in_the_directory_of_another_is_refused_or_moves_that_aside_whole(sweep, tmp_path, monkeypatch):
    assert sweep("seed=0")[0] == 0
    before = everything(tmp_path / "sweep")
    status, told = sweep("seed=1")
    assert status == 2
    assert "sweep has a sweep already: resume=true continues it, overwrite=true moves it aside" in told
    assert everything(tmp_path / "sweep") == before

    def stop(*_):
        raise RuntimeError("the power went")

    monkeypatch.setattr(jobs, "train", stop)
    status, told = sweep("seed=1", "overwrite=true")
    assert status == 1
    assert "Traceback" in told  # nobody foresaw it
    assert everything(tmp_path / "sweep.1") == before
    assert read(tmp_path / "sweep" / "0" / "failed.json") == {"error": "RuntimeError", "message": "the power went"}
    assert not (tmp_path / "sweep" / "0" / "report.json").exists()


def test_a_report_that_a_kill_left_without_its_page_gets_one(sweep, tmp_path):
    assert sweep("seed=0")[0] == 0
    (tmp_path / "sweep" / "0" / "report.html").unlink()
    before = read(tmp_path / "sweep" / "0" / "report.json")
    assert sweep("seed=0", "resume=true")[0] == 0
    assert (tmp_path / "sweep" / "0" / "report.html").stat().st_size > 0
    assert read(tmp_path / "sweep" / "0" / "report.json") == before


def test_a_job_whose_plan_was_searched_goes_on_from_its_search_and_is_not_run_again_once_finished(
    sweep, tmp_path, monkeypatch
):
    place, calls = tmp_path / "sweep" / "0", []

    def stop_after_the_search(*words):
        calls.append(words)
        raise RuntimeError("the power went")

    with monkeypatch.context() as patch:
        patch.setattr(jobs, "train", stop_after_the_search)
        assert sweep("budget.ratio=0.5", "resume=true")[0] == 1
    assert len(calls) == 1
    before = written(place / "search")
    assert "search.json" in before
    assert sweep("budget.ratio=0.5", "resume=true")[0] == 0
    assert written(place / "search") == before
    before = written(place)
    assert sweep("budget.ratio=0.5", "resume=true") == (0, "")
    assert written(place) == before


def test_a_finished_search_is_not_run_again_and_one_of_another_configuration_is_kept(sweep, tmp_path):
    place, words = tmp_path / "sweep" / "0", ["job=search", "search.frontier=0", "search.interactions=0"]
    assert sweep(*words, "budget.ratio=0.5")[0] == 0
    before = written(place)
    assert {"plan.json", "search.json"} <= before.keys()
    assert sweep(*words, "budget.ratio=0.5", "resume=true") == (0, "")
    assert written(place) == before
    status, told = sweep(*words, "budget.ratio=0.4", "resume=true")
    assert status == 1
    assert "budget.ratio: 0.5 in the search there, 0.4 now" in told
    assert written(place) == before


def test_what_failed_in_an_earlier_sweep_only_is_not_named(sweep, tmp_path):
    assert sweep("seed=0,abc")[0] == 1
    assert sweep("seed=0", "resume=true") == (0, "")
    assert (tmp_path / "sweep" / "1" / "failed.json").exists()


def test_a_job_that_fails_returns_no_number_to_the_sweeper(sweep, tmp_path, monkeypatch):
    (tmp_path / "returns.py").write_text(
        "from hydra.experimental.callback import Callback\n"
        "found = []\n"
        "class Returns(Callback):\n"
        "    def on_job_end(self, config, job_return, **kwargs):\n"
        "        found.append(job_return.return_value)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    sweep("seed=abc,0", "+hydra.callbacks.returns._target_=returns.Returns")
    failed, done = sys.modules.pop("returns").found
    assert failed != failed
    assert done == read(tmp_path / "sweep" / "1" / "report.json")["scores"]["packed"]["accuracy"]


def test_a_single_run_leaves_its_failure_until_it_succeeds_and_nothing_where_it_never_began(
    command, tmp_path, monkeypatch
):
    failed = tmp_path / "run" / "failed.json"
    status, told = command("hydra.run.dir=run", "seed=abc")
    assert (status, told.splitlines()[-1]) == (2, "nxmiformer: seed=abc: its value must be of type int")
    assert not failed.parent.exists()
    status, told = command("hydra.run.dir=run", "seed=0", "resume=true")
    assert (status, "there is nothing in " in told) == (2, True)
    assert not failed.parent.exists()

    def stop(*_):
        raise RuntimeError("the power went")

    with monkeypatch.context() as patch:
        patch.setattr(jobs, "train", stop)
        status, told = command("hydra.run.dir=run", "seed=0")
    assert (status, "RuntimeError: the power went" in told) == (1, True)
    assert read(failed) == {"error": "RuntimeError", "message": "the power went"}
    before = everything(failed.parent)
    assert command("hydra.run.dir=run", "seed=0")[0] == 2
    assert everything(failed.parent) == before
    assert command("hydra.run.dir=run", "seed=0", "resume=true")[0] == 0
    assert not failed.exists()


HOLDER = """
import sys
from pathlib import Path
from nxmiformer.files import alone
with alone(Path(sys.argv[1])):
    print("here", flush=True)
    sys.stdin.read()
"""


def test_a_directory_that_another_process_is_at_work_in_is_refused_until_that_ends(sweep, tmp_path):
    place = tmp_path / "sweep" / "1"
    place.mkdir(parents=True)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, place], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    ) as holder:
        assert holder.stdout.readline() == b"here\n"
        status, told = sweep("seed=0,1", "resume=true")
        assert status == 1
        assert f"process {holder.pid} on " in told
        assert [path.name for path in place.iterdir()] == [".lock"]
        assert [path.parent.name for path in (tmp_path / "sweep").glob("*/report.json")] == ["0"]
        holder.kill()
    assert sweep("seed=0,1", "resume=true")[0] == 0
    assert (place / "report.json").exists()


MEETING = """
import time
from pathlib import Path
from hydra.experimental.callback import Callback

class Meeting(Callback):
    def on_job_start(self, config, **kwargs):
        here = Path(config.hydra.runtime.output_dir)
        (here / "started").touch()
        deadline = time.monotonic() + 200
        while not all((here.parent / name / "started").exists() for name in "01"):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        (here / "met").touch()
"""
LAUNCHERS = {
    "joblib": ["hydra.launcher.n_jobs=2"],
    "submitit_local": [],
    "ray": ["+hydra.launcher.ray.init.num_cpus=2", "+hydra.launcher.ray.init.include_dashboard=false"],
}


@pytest.mark.parametrize("launcher", ["joblib", "submitit_slurm", "ray"])
def test_a_launcher_that_is_not_installed_is_told_with_its_extra(launcher, sweep, monkeypatch):
    def missing():
        raise MissingConfigException("not there", f"hydra/launcher/{launcher}", ["basic"])

    monkeypatch.setattr(cli, "_main", missing)
    status, told = sweep(f"hydra/launcher={launcher}")
    assert status == 2
    assert f"pip install 'nxmiformer[{launcher.partition('_')[0]}]'" in told


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_launcher_runs_jobs_side_by_side_and_what_fails_is_named(launcher, tmp_path):
    if importlib.util.find_spec(f"hydra_plugins.hydra_{launcher.partition('_')[0]}_launcher") is None:
        pytest.skip(f"hydra-{launcher.partition('_')[0]}-launcher is not installed")
    (tmp_path / "meeting.py").write_text(MEETING)
    words = ["-m", f"hydra/launcher={launcher}", *LAUNCHERS[launcher], "hydra.sweep.dir=sweep", "seed=0,abc"]
    done = subprocess.run(
        [*MAIN, *words, *TINY, "train.threads=1", "+hydra.callbacks.meeting._target_=meeting.Meeting"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert [path.parent.name for path in sorted((tmp_path / "sweep").glob("*/met"))] == ["0", "1"]
    assert read(tmp_path / "sweep" / "0" / "report.json")["seed"] == 0
    assert read(tmp_path / "sweep" / "1" / "failed.json")["error"] == "ValueError"
    assert "failed: sweep/1: seed=abc " in done.stderr
    assert "failed: sweep/0" not in done.stderr


LONG = [*SIZES, "train.batch_size=8", "train.checkpoint_every=1", "train.evaluate_every=0", "train.cpu=true"]
LONG += ["train.threads=1", "recipe.phases.admm.method.calibration=0"]
LONG += [f"recipe.phases.{phase}.steps={count}" for phase, count in {"dense": 3, "admm": 22, "finish": 1}.items()]


def test_a_sweep_that_was_killed_ends_in_the_bits_of_one_that_was_not_without_what_was_finished(tmp_path):
    place = tmp_path / "sweep"
    words = [*MAIN, "-m", "seed=0,1,2", "hydra.sweep.dir=sweep", "resume=true", *LONG]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    metrics = place / "1" / "metrics.jsonl"
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen(words, cwd=tmp_path, env=environment, stdout=log, stderr=log) as process,
    ):
        while process.poll() is None and not (metrics.exists() and len(metrics.read_text().splitlines()) >= 6):
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL, (tmp_path / "log").read_text()
    reports = [path.parent.name for path in place.glob("*/report.json")]
    assert (reports, (place / "2").exists()) == (["0"], False)
    before, steps = written(place / "0"), metrics.read_text().splitlines()[:5]

    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "sweep/2/report.html" in done.stdout
    assert written(place / "0") == before
    rows = metrics.read_text().splitlines()
    assert rows[:5] == steps  # the times that they took, too
    assert [json.loads(row)["total_step"] for row in rows] == list(range(1, 27))
    assert (place / "1" / "report.html").stat().st_size > 0
    for seed in range(3):
        with hydra.initialize_config_module("nxmiformer.conf", version_base="1.3"):
            config = hydra.compose("config", [*LONG, f"seed={seed}", "name=whole", "dense_cache=null"])
        whole = tmp_path / f"whole{seed}"
        content = jobs.run(cli.build(config, whole))
        packed = Path("packed") / "model.safetensors"
        assert (place / str(seed) / packed).read_bytes() == (whole / packed).read_bytes()
        assert read(place / str(seed) / "report.json")["scores"] == content["scores"]
