"""Does the method do what it is for? On the embedded task, with real training, over three seeds."""

import hydra
import pytest

from nxmiformer.cli import build
from nxmiformer.jobs import compress

STEPS = 20  # after the dense model, for every method
SEEDS = range(3)
MARGIN = 0.08  # of accuracy; the least difference was 0.12


def score(directory, *overrides):
    """The accuracy of the dense model, of its projection, and of the packed model, on the holdout."""
    fixed = ["task=grammar", "plan=1of4_int4", "report_on=holdout", "train.threads=1", "train.evaluate_every=0"]
    fixed += ["dense_cache=null", "train.max_length=64", "train.batch_size=64"]
    with hydra.initialize_config_module("nxmiformer.conf", version_base="1.3"):
        job = build(hydra.compose("config", [*fixed, *overrides]), directory)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compress, "write_report", lambda _: None)  # whose figures take a third of a run
        scores = compress.run(job)["scores"]
    return {name: scores[name]["accuracy"] for name in ("dense", "one_shot", "packed")}


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    """The directory of a dense model of the embedded task."""
    directory = tmp_path_factory.mktemp("behaviour")
    steps = "recipe.phases.dense.steps=1300"
    found = score(directory, "model=embedded", "model.layers=2", "recipe=one_shot", steps)
    assert found["dense"] > 0.8
    return directory / "dense"


def compressed(dense, directory, seed, *overrides):
    start = ["model=pretrained", f"model.path={dense}", "recipe.phases.dense.steps=0", "task.train=2400"]
    return score(directory, *start, f"seed={seed}", "train.group_by_length=false", *overrides)


def test_admm_keeps_more_than_the_fixed_mask_and_the_projection_for_every_seed(dense, tmp_path):
    """The same steps, learning rate and distillation for both: what differs is where the support comes from, and the
    values that training starts from."""
    distil = "{task: 0.0, logits: 1.0, hidden: 10.0}"
    for seed in SEEDS:
        ours = compressed(
            dense,
            tmp_path / f"admm-{seed}",
            seed,
            "recipe=admm",
            f"recipe.phases.admm.steps={round(0.3 * STEPS)}",
            f"recipe.phases.finish.steps={STEPS - round(0.3 * STEPS)}",
            "recipe.phases.admm.optimizer.lr=1e-3",
            "recipe.phases.finish.optimizer.lr=1e-3",
        )
        theirs = compressed(
            dense,
            tmp_path / f"fixed-{seed}",
            seed,
            "recipe=fixed_mask",
            f"recipe.phases.fixed_mask.steps={STEPS}",
            "recipe.phases.fixed_mask.optimizer.lr=1e-3",
            f"recipe.phases.fixed_mask.objective={distil}",
            "recipe.phases.fixed_mask.dropout=false",
        )
        print(seed, ours, theirs)
        assert ours["packed"] > theirs["packed"] + MARGIN
        assert ours["packed"] > ours["one_shot"] + MARGIN
        assert ours["dense"] - ours["packed"] < 0.05
