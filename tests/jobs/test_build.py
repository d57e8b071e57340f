"""Configurations at random. `NXMIFORMER_CONFIGURATIONS=1000 pytest tests/jobs/test_build.py` tries so many."""

import os
import random
from pathlib import Path

import hydra
import pytest
import torch
from mutated import mutated
from omegaconf import OmegaConf

from nxmiformer.jobs.build import build
from nxmiformer.jobs.job import Job
from nxmiformer.methods.ste_qat import SteQat
from nxmiformer.train.objective import Objective
from nxmiformer.train.recipe import Phase
from nxmiformer.train.settings import Settings

CONFIGURATIONS = int(os.environ.get("NXMIFORMER_CONFIGURATIONS", "100"))
CHOSEN = [
    ["recipe=admm"],
    ["recipe=sr_ste", "task=rte", "model=pretrained", "job=bench"],
    ["recipe=admm_paper", "job=search", "budget.ratio=0.1", "plan=2of4"],
    ["recipe=one_shot", "search=component", "tracker=wandb", "job=export"],
    ["recipe=fixed_mask", "plan=int4", "sensitivity@search.sensitivity=loss_change"],
]


@pytest.fixture(scope="module")
def composed():
    with hydra.initialize_config_module("nxmiformer.conf", version_base="1.3"):
        configs = [hydra.compose("config", ["name=run", *chosen]) for chosen in CHOSEN]
    return [OmegaConf.to_container(config, resolve=False) for config in configs]


def test_every_random_configuration_builds_a_job_or_is_refused_in_so_many_words(composed, capfd):
    chance, built, said = random.Random(0), 0, []
    for _ in range(CONFIGURATIONS):
        config = chance.choice(composed)
        for _ in range(chance.randint(1, 2)):
            config = mutated(config, chance)
        try:
            built += isinstance(build(OmegaConf.create(config), Path("nowhere")), Job)
        except ValueError as error:
            said.append(str(error))
    assert built + len(said) == CONFIGURATIONS
    assert [text for text in said if not all(4 < len(line) < 400 for line in text.splitlines() or [""])] == []
    assert 0.02 * CONFIGURATIONS < built < 0.5 * CONFIGURATIONS
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Objective(temperature=float("nan")), "Objective needs temperature to be a finite number, not nan"),
        (lambda: Objective(task=True), "Objective needs task to be a finite number, not True"),
        (lambda: Settings(batch_size=8.0), "Settings needs batch_size to be an integer, not 8.0"),
        (lambda: SteQat(refresh=True), "SteQat needs refresh to be an integer, not True"),
        (lambda: Phase(SteQat(), torch.optim.AdamW, epochs=float("inf")), "Phase needs epochs to be a finite number"),
        (lambda: Phase(SteQat, torch.optim.AdamW), "Phase needs method to be Method, not"),
        (lambda: Phase(SteQat(), "AdamW"), "Phase needs optimizer to be a function, not 'AdamW'"),
        (lambda: Phase(SteQat(), lambda groups: groups), "it gives a list, which is not an optimizer of torch"),
        (lambda: Phase(SteQat(), lambda groups: torch.optim.AdamW(groups, lr=-1)), "optimizer: Invalid learning rate"),
    ],
)
def test_what_is_refused_from_the_command_line_is_refused_from_python(make, message):
    with pytest.raises(ValueError, match=message):
        make()


class Unkept(torch.optim.SGD):
    """An optimizer whose state no checkpoint gives back."""

    def state_dict(self):
        return {**super().state_dict(), "clock": Unkept}


def test_an_optimizer_whose_state_a_resume_could_not_read_is_refused():
    with pytest.raises(ValueError, match="optimizer: "):
        Phase(SteQat(), lambda groups: Unkept(groups, lr=0.1))
