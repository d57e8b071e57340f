"""A support that a checkpoint stored is kept by training, and refused where it is none."""

import hydra
import pytest
import torch
from test_methods import EPOCH, STEPS, Run, make

from nxmiformer.applied.convert import verify
from nxmiformer.cli import build
from nxmiformer.jobs.phases import check_taught
from nxmiformer.layers.found import distinct_layers
from nxmiformer.layers.inputs import Activations
from nxmiformer.layers.support import support_of
from nxmiformer.methods.base import Length
from nxmiformer.methods.pattern_lock import PatternLock
from nxmiformer.sets import NM, Block, Grid, Then, Unstructured

SETS = [Unstructured(0.15), Unstructured(0.1, "entropy"), NM(2, 4), Block(2, 2, 0.25)]


def locked(kind, constraint, seed=0):
    """A converted model whose layers have supports that magnitude would not choose, and some kept weights are zero."""
    model, plan = make(kind, constraint, Activations())
    generator = torch.Generator().manual_seed(seed)
    for layer in distinct_layers(model).values():
        support = constraint.sparsity.mask(torch.rand(layer.matrix.shape, generator=generator))
        layer.register_buffer("support", support, persistent=False)
        with torch.no_grad():
            layer.matrix[tuple(support.nonzero()[0].tolist())] = 0.0
    return model, plan


@pytest.mark.parametrize("points", SETS, ids=str)
@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_the_support_is_the_stored_one_after_training_and_after_training_on_grids(points, kind):
    model, plan = locked(kind, Then(points, Grid(4)))
    stored = {name: support_of(layer).clone() for name, layer in distinct_layers(model).items()}
    for method in (PatternLock(grid=False), PatternLock(), PatternLock(learned_scales=True)):
        phase = Run(model, method).take(5)
        phase.backward()
        phase.method.before_clip()
        for name, layer in method.layers.items():
            gradient = layer.weight.grad.t() if layer.transposed else layer.weight.grad
            assert not gradient[~stored[name]].any()
            assert layer.quantizer.mask.equal(stored[name])
            assert layer.inputs.active == method.grid
        method.hand_over()
        for name, layer in method.layers.items():
            assert not layer.matrix[~stored[name]].any()
            assert support_of(layer).equal(stored[name])
    assert any(layer.matrix[stored[name]].any() for name, layer in method.layers.items())
    method.finalize()
    verify(model, plan)


def test_a_checkpoint_without_a_support_and_one_of_another_set_are_refused_by_layer():
    with pytest.raises(ValueError, match=r"encoder.*: its checkpoint stores no support to keep: give model.path"):
        PatternLock().attach(make(constraint=NM(2, 4))[0], Length(STEPS, EPOCH))
    model, _ = locked("bert", NM(2, 4))
    for layer in distinct_layers(model).values():
        layer.support = ~torch.zeros_like(layer.support)
    with pytest.raises(ValueError, match=r"encoder.*: the support that its checkpoint stores is none of 2:4"):
        PatternLock().attach(model, Length(STEPS, EPOCH))


def test_a_locked_pattern_is_not_taught_by_a_head_that_nobody_has_trained(tmp_path):
    def job(*overrides):
        with hydra.initialize_config_module("nxmiformer.conf", version_base="1.3"):
            return build(
                hydra.compose("config", ["name=run", "model=pretrained", "recipe=pattern_lock", *overrides]), tmp_path
            )

    bare = job()
    with pytest.raises(ValueError, match=r"'pattern_lock' distils a dense model of the task: give model.teacher"):
        check_taught(bare, bare.recipe.phases)
    for overrides in (["model.teacher=somewhere"], ["model.finetuned=true"], ["recipe.phases.dense.steps=3"]):
        taught = job(*overrides)
        check_taught(taught, taught.recipe.phases)
