"""A sweep on a real Slurm of one machine: what a cancelled job leaves is gone on with by the same command."""

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import hydra
import pytest
from slurm_cluster import cluster, missing
from test_sweep import LONG, MAIN

from nxmiformer import cli
from nxmiformer.jobs import compress as jobs

PROMPT = "from submitit import SlurmJob; SlurmJob.watcher._delay_s = 2"  # else a state is a minute old
PROMPT_MAIN = [*MAIN[:2], f"{PROMPT}; {MAIN[2]}"]
LONGER = [*LONG, "recipe.phases.admm.steps=40"]
PATIENCE = 240  # seconds


@pytest.fixture
def slurm():
    """The environment of a cluster's clients."""
    if importlib.util.find_spec("hydra_plugins.hydra_submitit_launcher") is None:
        pytest.skip("hydra-submitit-launcher is not installed")
    if absent := missing():
        pytest.skip(f"Slurm and its accounts (slurm-wlm, slurmdbd, munge, mariadb-server) lack {', '.join(absent)}")
    with tempfile.TemporaryDirectory() as place, cluster(Path(place)) as more:
        yield {**os.environ, **more, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}


def test_a_sweep_whose_job_was_cancelled_ends_on_the_second_call_in_the_bits_of_one_that_was_not(slurm, tmp_path):
    words = [*PROMPT_MAIN, "-m", "seed=0,1", "hydra/launcher=submitit_slurm", "hydra.launcher.timeout_min=10"]
    words += ["hydra.sweep.dir=sweep", "resume=true", *LONGER]
    place, log = tmp_path / "sweep", tmp_path / "log"
    metrics = place / "1" / "metrics.jsonl"
    with (
        log.open("w") as output,
        subprocess.Popen(words, cwd=tmp_path, env=slurm, stdout=output, stderr=output) as process,
    ):
        deadline = time.monotonic() + PATIENCE
        while process.poll() is None and time.monotonic() < deadline:
            if metrics.exists() and len(metrics.read_text().splitlines()) >= 6:
                break
            time.sleep(0.01)
        with held(processes_of(1)):
            cancelled = task_of(slurm, 1)
            subprocess.run(["scancel", cancelled], env=slurm, check=True)
            assert process.wait(PATIENCE) == 1, log.read_text()
    told = log.read_text()
    assert f"Job {cancelled}" in told
    assert "CANCELLED" in told
    assert "resume=true" in told.splitlines()[-1]
    assert "unexpected" not in told
    reports = [path.parent.name for path in place.glob("*/report.json")]
    assert reports == ["0"], told

    done = subprocess.run(words, cwd=tmp_path, env=slurm, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 skipped, 1 done" in done.stdout
    assert [json.loads(row)["total_step"] for row in metrics.read_text().splitlines()] == list(range(1, 45))
    with hydra.initialize_config_module("nxmiformer.conf", version_base="1.3"):
        config = hydra.compose("config", [*LONGER, "seed=1", "name=whole", "dense_cache=null"])
    jobs.run(cli.build(config, tmp_path / "whole"))
    packed = Path("packed") / "model.safetensors"
    assert (place / "1" / packed).read_bytes() == (tmp_path / "whole" / packed).read_bytes()


def processes_of(index):
    """The numbers of the Python processes of a task of the array."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words, environment = ((place / name).read_bytes().split(b"\0") for name in ("cmdline", "environ"))
            if words[0] == sys.executable.encode() and f"SLURM_ARRAY_TASK_ID={index}".encode() in environment:
                found.append(int(place.name))
    assert found, f"no process of task {index}"
    return found


@contextlib.contextmanager
def held(processes):
    """The processes stand still until they are killed, though Slurm wakes what it is to end."""
    over = threading.Event()

    def stop():
        while not over.wait(0.01):
            for process in processes:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGSTOP)

    thread = threading.Thread(target=stop)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def task_of(environment, index):
    """The job's number of a task of the array that is in the queue."""
    words = ["squeue", "--noheader", "--array", "--format=%i %K"]
    rows = subprocess.run(words, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()
    return next(job for job, task in map(str.split, rows) if task == str(index))
