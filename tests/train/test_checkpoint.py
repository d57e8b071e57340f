import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from nxmiformer.layers.convert import convert
from nxmiformer.layers.targets import find_targets
from nxmiformer.methods.base import Length
from nxmiformer.methods.ste_qat import SteQat
from nxmiformer.plan.compression import CompressionPlan
from nxmiformer.sets import Grid
from nxmiformer.train import checkpoint
from nxmiformer.train.checkpoint import Checkpoints, Position, difference, restore_rng, write_text

IDENTITY = {"config": {"seed": 0, "recipe": {"lr": 0.1, "steps": [1, 2]}}, "plan": "abc"}


class Killed(BaseException):
    """What a kill looks like to the code that it stops."""


class Model(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.tied = nn.Linear(4, 4, bias=False)
        self.tied.weight = self.layers[0].weight
        self.register_buffer("count", torch.full((2,), value))
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.fill_(value)


def same(model, value):
    return all(bool((tensor == value).all()) for tensor in model.state_dict().values())


def load(checkpoints, name="latest"):
    model = Model(-1.0)
    position, state = checkpoints.load(name, model)
    return model, position, state


def test_a_checkpoint_gives_back_model_position_and_state(tmp_path):
    checkpoints = Checkpoints(tmp_path, IDENTITY)
    position = Position(1, 5, 17, 2.5, 1.25)
    checkpoints.save("latest", Model(3.0), position, {"method": {"z": torch.arange(3)}, "facts": "{}"})
    model, found, state = load(checkpoints)
    assert same(model, 3.0)
    assert model.tied.weight is model.layers[0].weight
    assert found == position
    assert state["method"]["z"].tolist() == [0, 1, 2]
    assert set(state) == {"method", "facts", "rng"}
    assert position.after_phase() == Position(2, 0, 17, 2.5, 0.0)


def test_each_name_keeps_one_checkpoint_the_last(tmp_path):
    checkpoints = Checkpoints(tmp_path, IDENTITY)
    for step in range(1, 4):
        checkpoints.save("latest", Model(float(step)), Position(step=step), {})
    checkpoints.save("best", Model(2.0), Position(step=2), {})
    assert same(load(checkpoints)[0], 3.0)
    assert same(load(checkpoints, "best")[0], 2.0)
    assert len([path for path in checkpoints.root.iterdir() if path.is_dir()]) == 2
    assert checkpoints.path("latest").is_dir()


def kill_at(monkeypatch, moment):
    """Stop the next save at the moment, with half of its work done."""

    def half_a_file(_, path, *__, **___):
        Path(path).write_bytes(b"half")
        raise Killed

    def nothing(*_, **__):
        raise Killed

    target, attribute, stop = {
        "model": (checkpoint, "save_file", half_a_file),
        "state": (torch, "save", half_a_file),
        "rename": (Path, "rename", nothing),
        "pointer": (checkpoint.os, "replace", nothing),
    }[moment]
    monkeypatch.setattr(target, attribute, stop)


@pytest.mark.parametrize("moment", ["model", "state", "rename", "pointer"])
def test_a_save_that_is_killed_leaves_the_checkpoint_before_it_whole(moment, tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, IDENTITY)
    checkpoints.save("latest", Model(1.0), Position(step=1), {"facts": "one"})
    with monkeypatch.context() as patch:
        kill_at(patch, moment)
        with pytest.raises(Killed):
            checkpoints.save("latest", Model(2.0), Position(step=2), {"facts": "two"})
    model, position, state = load(Checkpoints(tmp_path, IDENTITY))
    assert same(model, 1.0)
    assert (position.step, state["facts"]) == (1, "one")
    checkpoints.save("latest", Model(2.0), Position(step=2), {"facts": "two"})
    model, position, state = load(checkpoints)
    assert same(model, 2.0)
    assert (position.step, state["facts"]) == (2, "two")


@pytest.mark.parametrize("moment", ["model", "state", "rename", "pointer"])
def test_a_first_save_that_is_killed_leaves_no_checkpoint(moment, tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, IDENTITY)
    with monkeypatch.context() as patch:
        kill_at(patch, moment)
        with pytest.raises(Killed):
            checkpoints.save("latest", Model(2.0), Position(step=2), {})
    with pytest.raises(ValueError, match="there is no checkpoint 'latest'"):
        load(checkpoints)


def test_a_kill_while_the_old_checkpoint_is_removed_leaves_the_new_one_whole(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, IDENTITY)
    checkpoints.save("latest", Model(1.0), Position(step=1), {})
    old, remove = checkpoints.path("latest"), shutil.rmtree

    def stop(path, **options):
        if path == old:
            (path / "state.pt").unlink()
            raise Killed
        remove(path, **options)

    monkeypatch.setattr(checkpoint.shutil, "rmtree", stop)
    with pytest.raises(Killed):
        checkpoints.save("latest", Model(2.0), Position(step=2), {})
    assert same(load(checkpoints)[0], 2.0)


def test_a_checkpoint_of_another_run_is_refused_and_the_difference_shown(tmp_path):
    Checkpoints(tmp_path, IDENTITY).save("latest", Model(1.0), Position(), {})
    other = {"config": {"seed": 1, "recipe": {"lr": 0.2, "steps": [1, 2]}, "new": True}, "plan": "abc"}
    with pytest.raises(ValueError, match="is a checkpoint of another run") as error:
        load(Checkpoints(tmp_path, other))
    assert str(error.value).splitlines()[1:] == [
        "  config.new: None in the checkpoint, True now",
        "  config.recipe.lr: 0.1 in the checkpoint, 0.2 now",
        "  config.seed: 0 in the checkpoint, 1 now",
    ]


def test_a_checkpoint_that_another_run_left_at_the_same_step_is_replaced(tmp_path):
    for value, identity in ((1.0, IDENTITY), (2.0, {"config": {}})):
        checkpoints = Checkpoints(tmp_path, identity)
        checkpoints.save("latest", Model(value), Position(step=4), {})
        assert same(load(checkpoints)[0], value)


def test_an_identity_is_compared_as_json_keeps_it(tmp_path):
    Checkpoints(tmp_path, {"sizes": (1, 2), "names": {1: "a"}}).save("latest", Model(1.0), Position(), {})
    assert same(load(Checkpoints(tmp_path, {"sizes": [1, 2], "names": {"1": "a"}}))[0], 1.0)


def test_difference_names_every_leaf_that_differs_and_no_other():
    assert difference({"a": {"b": 1, "c": [1]}, "d": 2}, {"a": {"b": 1, "c": [2]}, "d": 2}) == [
        "a.c: [1] in the checkpoint, [2] now"
    ]
    assert difference({"a": {"b": 1}}, {"a": 3}) == ["a: {'b': 1} in the checkpoint, 3 now"]
    assert difference(IDENTITY, IDENTITY) == []


def test_no_checkpoint_to_resume_from_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"there is no checkpoint 'latest' in .* to resume from"):
        load(Checkpoints(tmp_path, IDENTITY))


def test_a_checkpoint_that_does_not_fit_the_model_is_refused(tmp_path):
    checkpoints = Checkpoints(tmp_path, IDENTITY)
    model = Model(1.0)
    model.extra = nn.Linear(2, 2)
    checkpoints.save("latest", model, Position(), {})
    with pytest.raises(ValueError, match=r"does not fit the model: .*extra\.bias"):
        load(checkpoints)
    checkpoints.save("best", Model(1.0), Position(), {})
    with pytest.raises(ValueError, match=r"does not fit the model: it lacks .*extra\.bias"):
        checkpoints.load("best", model)


def draws():
    return torch.rand(3).tolist(), np.random.normal(), random.gauss(0, 1), random.random()  # noqa: NPY002


def test_the_random_generators_go_on_from_where_they_were(tmp_path):
    checkpoints = Checkpoints(tmp_path, IDENTITY)
    torch.manual_seed(5), np.random.seed(5), random.seed(5)  # noqa: NPY002
    draws()  # leaves half a pair of normal numbers behind in two of the generators
    checkpoints.save("latest", Model(1.0), Position(), {})
    expected = draws()
    torch.manual_seed(6), np.random.seed(6), random.seed(6)  # noqa: NPY002
    restore_rng(load(checkpoints)[2]["rng"])
    assert draws() == expected


def test_saving_takes_no_random_number(tmp_path):
    model = Model(1.0)
    torch.manual_seed(5), np.random.seed(5), random.seed(5)  # noqa: NPY002
    expected = draws()
    torch.manual_seed(5), np.random.seed(5), random.seed(5)  # noqa: NPY002
    Checkpoints(tmp_path, IDENTITY).save("latest", model, Position(), {})
    assert draws() == expected


def test_learned_scales_are_the_methods_and_do_not_keep_a_checkpoint_from_its_model(tmp_path):
    def converted():
        model = Model(1.0)
        del model.tied
        return convert(model, CompressionPlan.uniform(model, find_targets(model), Grid(4)))

    model, method = converted(), SteQat(learned_scales=True)
    method.attach(model, Length(4, 4))
    assert any("scales" in key for key in model.state_dict())
    checkpoints = Checkpoints(tmp_path, IDENTITY)
    checkpoints.save("latest", model, Position(step=3), {"method": method.state_dict()})
    for target in (converted(), model):
        position, state = checkpoints.load("latest", target)
        assert position.step == 3
        assert {"layers.0.scales", "layers.1.scales"} <= set(state["method"]["pieces"])


def test_a_text_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "report.json"
    write_text(path, "old")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.os, "replace", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            write_text(path, "new")
    assert path.read_text() == "old"
    write_text(path, "new")
    assert path.read_text() == "new"
