import random
import resource
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import booleans, data, integers, sampled_from
from kills import moments
from torch import nn

from nxmiformer.applied.convert import convert
from nxmiformer.errors import FileError
from nxmiformer.files import digests_of
from nxmiformer.layers.targets import find_targets
from nxmiformer.methods.base import Length
from nxmiformer.methods.ste_qat import SteQat
from nxmiformer.plan.compression import CompressionPlan
from nxmiformer.sets import Grid
from nxmiformer.train.checkpoint import Checkpoints, Position, difference, restore_rng

IDENTITY = {"config": {"seed": 0, "recipe": {"lr": 0.1, "steps": [1, 2]}}, "plan": "abc"}


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


@pytest.mark.parametrize("before", [None, 1.0])
def test_a_save_that_a_kill_meets_at_any_operation_leaves_the_old_checkpoint_or_the_new_one(before, tmp_path):
    found = []
    for moment in moments(tmp_path):
        run = tmp_path / str(moment.number)
        run.mkdir()
        if before is not None:
            Checkpoints(run, IDENTITY).save("latest", Model(before), Position(step=1), {"facts": before})
        with moment:
            Checkpoints(run, IDENTITY).save("latest", Model(2.0), Position(step=2), {"facts": 2.0})
        again = Checkpoints(run, IDENTITY)
        again.tidy()
        path = again.path("latest")
        assert len(list(again.root.glob("*"))) == (0 if path is None else 2)
        found.append(None if path is None else load(again)[2]["facts"])
        assert path is None or same(load(again)[0], found[-1])
        again.save("latest", Model(2.0), Position(step=2), {"facts": 2.0})
        assert same(load(again)[0], 2.0)
        again.save("latest", Model(3.0), Position(step=3), {})
        assert same(load(again)[0], 3.0)
    assert found == sorted(found, key=[before, 2.0].index)  # once it is there, it stays
    assert {*found} == {before, 2.0}
    assert moment.number >= 15


@pytest.mark.parametrize("size", [0, 20, 300, 2000])
def test_a_full_disk_leaves_the_checkpoint_before_it_whole_and_is_told(size, tmp_path):
    checkpoints = Checkpoints(tmp_path, IDENTITY)
    checkpoints.save("latest", Model(1.0), Position(step=1), {})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        with pytest.raises(FileError, match=r"latest-0-2-\w+ cannot be written: File too large; raise the limit"):
            checkpoints.save("latest", Model(2.0), Position(step=2), {"z": torch.zeros(2000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert same(load(checkpoints)[0], 1.0)


def test_a_run_that_has_vanished_is_not_made_again(tmp_path):
    checkpoints = Checkpoints(tmp_path / "run", IDENTITY)
    with pytest.raises(FileError, match=r"checkpoints cannot be written: .* has it been moved or removed"):
        checkpoints.save("latest", Model(2.0), Position(step=2), {})
    assert list(tmp_path.iterdir()) == []


@given(data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_checkpoint_with_a_bit_flipped_or_cut_short_anywhere_is_refused_by_the_name_of_its_file(tmp_path, data):
    checkpoints = Checkpoints(tmp_path, IDENTITY)
    checkpoints.save("latest", Model(1.0), Position(step=1), {"z": torch.zeros(3)})
    path = checkpoints.path("latest")
    file = data.draw(sampled_from(sorted(path.iterdir())))
    whole = file.read_bytes()
    place = data.draw(integers(0, len(whole) - 1))
    if data.draw(booleans()):
        file.write_bytes(whole[:place])
    else:
        file.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << data.draw(integers(0, 7)))]) + whole[place + 1 :])
    with pytest.raises(ValueError, match=r"is missing or damaged: .* start the run again, with overwrite") as error:
        load(checkpoints)
    assert str(path if file.name == "digests.json" else file) in str(error.value)
    file.write_bytes(whole)


@pytest.mark.parametrize("name", ["model.safetensors", "state.pt", "identity.json", "digests.json"])
def test_a_checkpoint_that_lacks_a_file_is_refused(name, tmp_path):
    checkpoints = Checkpoints(tmp_path, IDENTITY)
    checkpoints.save("latest", Model(1.0), Position(step=1), {})
    (checkpoints.path("latest") / name).unlink()
    with pytest.raises(ValueError, match=rf"{name} is missing or damaged"):
        load(checkpoints)


@pytest.mark.parametrize("text", ["", "..", "latest-0-1", "\x00", "../../latest-0-1-01234567", "best-0-1-01234567"])
def test_a_pointer_that_is_damaged_is_refused_and_nothing_is_removed(text, tmp_path):
    checkpoints = Checkpoints(tmp_path, IDENTITY)
    checkpoints.save("latest", Model(1.0), Position(step=1), {})
    (checkpoints.root / "latest").write_text(text)
    before = digests_of(tmp_path)
    again = partial(checkpoints.save, "latest", Model(2.0), Position(), {})
    for work in (partial(load, checkpoints), checkpoints.tidy, again):
        with pytest.raises(ValueError, match="latest is damaged: it names no checkpoint"):
            work()
    assert digests_of(tmp_path) == before


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
