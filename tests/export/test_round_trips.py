"""Any model, plan and dtype: packed, read and saved again, it is the same, bit for bit and byte for byte."""

import tempfile
from pathlib import Path

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_lazy import check_lazy
from tiny import MODELS, contents, logits, same_bits, seeded

from nxmiformer.applied.convert import convert
from nxmiformer.export import load_packed, save_packed
from nxmiformer.export.packed import check_packable
from nxmiformer.export.skeleton import header_of, planned_header
from nxmiformer.layers.inputs import RANGES, Activations
from nxmiformer.layers.projection import project
from nxmiformer.plan.origin import Planning
from nxmiformer.sets import NM, Grid, Then

sparse = st.builds(
    lambda group, keep, coding: NM(min(keep, group), group, coding),
    st.sampled_from([1, 2, 4, 8, 16]),
    st.integers(1, 16),
    st.sampled_from(["hardware", "dense"]),
)
grids = st.builds(Grid, st.integers(1, 8), st.sampled_from([None, 4, 8, 16]), st.sampled_from(["mse", "absmax"]))
words = st.sampled_from([None, "int8", "int4", "int3", "int2g8", "2:4+int4", "2:4c+int4", "1:4"])
plans = st.builds(
    lambda weight, ranges, embeddings, head: Planning(
        "drawn", weight, ranges and Activations(8, ranges), embeddings=embeddings, head=head
    ),
    sparse | grids | st.builds(Then, sparse, grids),
    st.sampled_from([None, *RANGES]),
    words,
    words,
)


@settings(max_examples=12, deadline=None)
@given(st.sampled_from(MODELS), plans, st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
def test_a_model_is_saved_as_foreseen_and_read_and_saved_again_as_it_was(make, planning, dtype):
    model = seeded(make).to(dtype).requires_grad_(False)
    plan = planning(model)
    convert(model, plan)
    model.requires_grad_(True)
    check_packable(model, plan)
    foreseen = planned_header(model, plan)
    project(model)
    model.eval()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory)
        save_packed(model, plan, path / "eager")
        assert header_of(path / "eager" / "model.safetensors") == foreseen
        loaded = load_packed(path / "eager")
        state, again = model.state_dict(), loaded.state_dict()
        assert state.keys() == again.keys()
        assert all(same_bits(again[key], state[key]) for key in state)
        assert same_bits(logits(loaded), logits(model))
        save_packed(loaded, plan, path / "again")
        assert contents(path / "again") == contents(path / "eager")
        check_lazy(model, plan, path)
