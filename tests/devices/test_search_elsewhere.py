"""What a search looks at on another device is what it sees on the CPU."""

import copy

import pytest
from devices import foreign
from devices.foreign import there
from every import SENSITIVITIES
from search.small import evidence, units

from nxmiformer.search.evidence import Evidence
from nxmiformer.sets import NM, Grid, Then

SETS = [NM(2, 4), Then(NM(2, 4), Grid(4, scale="absmax"))]


@pytest.fixture(scope="module")
def both():
    """Evidence on the CPU, and the same elsewhere."""
    stayed = evidence("gpt2", count=6, size=3)
    stayed.model.set_attn_implementation("eager")  # the CPU has another kernel for sdpa
    model = copy.deepcopy(stayed.model).to(foreign.DEVICE)
    batches = there(stayed.batches)
    return stayed, Evidence(model, batches, lambda batch: units(model, batch), stayed.truths, stayed.metric)


@pytest.mark.parametrize("sensitivity", SENSITIVITIES, ids=repr)
def test_every_sensitivity_foresees_elsewhere_what_it_does_on_the_cpu(both, sensitivity):
    stayed, moved = both
    layer = list(stayed.layers)[1]
    assert sensitivity(moved, layer, SETS) == pytest.approx(sensitivity(stayed, layer, SETS), rel=1e-5)


def test_evidence_elsewhere_is_known_scored_and_measured_as_on_the_cpu(both):
    stayed, moved = both
    assert moved.fingerprint == stayed.fingerprint
    for each in ("loss", "score", "divergence", "distance"):
        assert getattr(moved, each)(moved.logits) == pytest.approx(getattr(stayed, each)(stayed.logits), rel=1e-6)
