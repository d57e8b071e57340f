"""What only a GPU can show: `make gpu` runs it, with the other tests that want one."""

import json

import hydra
import pytest
import torch
from accelerate.state import AcceleratorState
from every import SETS
from export.tiny import bert, compressed, contents, logits

from nxmiformer import load_packed, save_packed
from nxmiformer.cli import build
from nxmiformer.jobs.compress import run
from nxmiformer.layers.inputs import Activations
from nxmiformer.train.tracker import Jsonl

pytestmark = pytest.mark.cuda
GPU = "cuda"
FIRST = 20  # steps, in which differences of rounding have not grown yet
CLOSE = {"no": 1e-3, "bf16": 0.05}  # relative, of losses to those of float32 on the CPU


class KilledError(Exception):
    """What a kill looks like to the code that it stops."""


@pytest.fixture(autouse=True)
def _fresh_accelerate_state():
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


def demo(directory, steps, *overrides):
    """The demo, with so many steps in its phases; gives its report."""
    lengths = [f"recipe.phases.{name}.steps={n}" for name, n in zip(("dense", "admm", "finish"), steps, strict=True)]
    fixed = ["experiment=demo", "report_on=holdout", "train.log_every=1", "train.evaluate_every=0"]
    AcceleratorState._reset_state(True)
    with hydra.initialize_config_module("nxmiformer.conf", version_base="1.3"):
        return run(build(hydra.compose("config", [*fixed, *lengths, *overrides]), directory))


def losses(directory):
    return torch.tensor([json.loads(line)["loss"] for line in (directory / "metrics.jsonl").read_text().splitlines()])


@pytest.fixture(scope="module")
def on_the_cpu(tmp_path_factory):
    """The losses and the scores of the demo on the CPU."""
    directory = tmp_path_factory.mktemp("cpu")
    report = demo(directory, (1200, 100, 150), "train.cpu=true")
    return losses(directory), report["scores"]


@pytest.mark.parametrize("precision", CLOSE)
def test_the_demo_learns_on_a_gpu_what_it_learns_on_the_cpu(tmp_path, on_the_cpu, precision):
    expected, stayed = on_the_cpu
    report = demo(tmp_path, (1200, 100, 150), f"train.precision={precision}")
    assert report["device"] == torch.cuda.get_device_name(GPU)
    print(precision, report["device"], report["seconds"], "s:", report["scores"], "and on the CPU:", stayed)
    torch.testing.assert_close(losses(tmp_path)[:FIRST], expected[:FIRST], rtol=CLOSE[precision], atol=0)
    for scores in (report["scores"], stayed):
        dense, one_shot, packed = (scores[name]["accuracy"] for name in ("dense", "one_shot", "packed"))
        assert dense > 0.9
        assert packed > max(dense - 0.05, one_shot + 0.08)


def test_a_run_that_was_stopped_within_a_phase_goes_on_on_a_gpu(tmp_path, monkeypatch):
    steps, every = (12, 12, 12), "train.checkpoint_every=6"
    demo(tmp_path / "whole", steps, every)
    log = Jsonl.log

    def stop(self, row):
        log(self, row)
        if row["total_step"] == 20:  # the eighth of ADMM's
            raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(Jsonl, "log", stop)
        with pytest.raises(KilledError):
            demo(tmp_path / "stopped", steps, every)
    demo(tmp_path / "stopped", steps, every, "resume=true")
    torch.testing.assert_close(losses(tmp_path / "stopped"), losses(tmp_path / "whole"), rtol=1e-3, atol=0)


@pytest.mark.parametrize("points", SETS, ids=repr)
def test_a_projection_on_a_gpu_is_a_point_of_the_set_and_is_packed_as_on_the_cpu(points):
    w = torch.randn(8, 128, generator=torch.Generator().manual_seed(0))
    point = points.project(w.to(GPU))
    here = point.cpu()
    assert points.contains(point)
    assert points.contains(here)
    torch.testing.assert_close((w - here).norm(), (w - points.project(w)).norm(), rtol=1e-4, atol=1e-6)
    parts, expected = points.pack(point), points.pack(here)
    assert parts.keys() == expected.keys()
    assert all(torch.equal(parts[name].cpu(), expected[name]) for name in parts)
    assert torch.equal(points.unpack(parts, (8, 128)), point)


@pytest.mark.parametrize("lazy", [False, True], ids=["eager", "lazy"])
def test_a_model_on_a_gpu_is_packed_into_the_files_of_the_cpu_and_computes_there(tmp_path, lazy):
    model, plan = compressed(bert, activations=Activations(8, "ema"))
    save_packed(model, plan, tmp_path / "cpu")
    save_packed(model.to(GPU), plan, tmp_path / "gpu")
    assert contents(tmp_path / "gpu") == contents(tmp_path / "cpu")
    loaded = load_packed(tmp_path / "gpu", lazy=lazy)
    expected = logits(loaded)
    with torch.device(GPU):  # where the tokens are made
        found = logits(loaded.to(GPU)).cpu()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
