import json

import hydra
import pytest

from nxmiformer.jobs.origin import as_trained, packed_of


@pytest.fixture
def run(tmp_path):
    """The directory of a run on a task of its own, as far as it tells of that."""
    (tmp_path / "run" / "packed").mkdir(parents=True)
    (tmp_path / "run" / "packed" / "packed.json").write_text("{}")
    (tmp_path / "glue").mkdir()
    config = {"task": {"name": "stsb", "path": "glue"}, "train": {"max_length": 64, "eval_batch_size": 5}}
    record = {"directory": str(tmp_path), "config": config}
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    return tmp_path / "run"


def config(*overrides):
    with hydra.initialize_config_module("nxmiformer.conf", version_base="1.3"):
        return as_trained(hydra.compose("config", ["name=x", *overrides]), overrides)


@pytest.mark.parametrize("job", ["export", "bench"])
def test_a_packed_model_is_looked_at_on_the_task_of_its_run(run, job):
    found = config(f"job={job}", f"path={run}")
    assert found.task == {"name": "stsb", "path": str(run.parent / "glue")}
    assert (found.train.max_length, found.train.eval_batch_size) == (64, 5)


def test_what_is_asked_for_stays(run):
    found = config("job=export", f"path={run}", "task=sst2", "train.max_length=32")
    assert (found.task.name, found.train.max_length, found.train.eval_batch_size) == ("sst2", 32, 5)
    assert config("job=export", f"path={run}", "+task.path=elsewhere").task == {"name": "stsb", "path": "elsewhere"}


def test_a_run_and_its_packed_model_are_one_place(run):
    assert packed_of(run) == packed_of(run / "packed") == run / "packed"
    assert packed_of(run.parent) == run.parent


def test_an_export_without_a_run_beside_it_asks_for_the_task(run):
    (run / "run.json").unlink()
    with pytest.raises(ValueError, match=r"no run.json beside the packed model, .*task=stsb"):
        config("job=export", f"path={run}")
    assert config("job=bench", f"path={run}").task.name == "grammar"
    assert config("job=export", f"path={run}", "task=sst2").task.name == "sst2"
