"""A survey of a decoder block by block predicts the damages that the whole model shows, whatever stops it."""

import dataclasses
import json
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import transformers
from campaign import Snapshots
from torch.nn import functional as F

from nxmiformer import load_packed
from nxmiformer.applied.convert import convert
from nxmiformer.blockwise.activations import Activations
from nxmiformer.blockwise.decoder import Decoder, blank, blocks_of
from nxmiformer.blockwise.memory import PROCESS, predict
from nxmiformer.blockwise.settings import Blockwise
from nxmiformer.blockwise.stored import Checkpoint, shapes_of
from nxmiformer.blockwise.survey import Survey
from nxmiformer.errors import RefusedError
from nxmiformer.jobs.blockwise import blockwise
from nxmiformer.jobs.survey import survey
from nxmiformer.layers.found import linear_layers
from nxmiformer.layers.moments import input_moments
from nxmiformer.layers.targets import find_targets
from nxmiformer.optim.reconstruct import Problem
from nxmiformer.plan.compression import CompressionPlan
from nxmiformer.runs.many import load_runs
from nxmiformer.sets import NM, Block, Grid, Then

sys.path.append(str(Path(__file__).parent))
from test_blockwise import HEAD, IDS, TOKENS, Tally, gemma, gpt2, job, llama, place, saved, untied, wide  # noqa: F401

SETS = [Grid(8), Then(NM(2, 4), Grid(4)), Block(4, 4, 0.5)]  # rows apart, and rows together
ANCHOR = SETS[1]
ITERATIONS = 2


def deep():
    """Many words, of which whole rows of logits are compared, and many blocks, from which anchors go on."""
    sizes = {"hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 128}
    config = transformers.LlamaConfig(**{**TOKENS, "vocab_size": 5000}, **sizes, max_position_embeddings=32)
    return transformers.LlamaForCausalLM(config)


def opened(path, directory, candidates=SETS, ids=IDS):
    model = blank(path, HEAD, torch.float32)
    plan = CompressionPlan.uniform(model, find_targets(model), NM(1, 1))
    convert(model, plan)
    decoder = Decoder(model, plan, torch.device("cpu"))
    dense = Checkpoint(path, shapes_of(model, decoder.shared), model.base_model_prefix)
    sets = dict.fromkeys(plan.layers, candidates)
    anchors = dict.fromkeys(plan.layers, ANCHOR)
    return Survey(decoder, dense, ids, Blockwise(iterations=3), sets, anchors, ITERATIONS, directory)


class Watched:
    """Adds the bytes of a directory to a list whenever a file of it has been written."""

    def __init__(self, directory, sizes):
        self.directory, self.sizes = directory, sizes

    def __enter__(self):
        self.written = Activations.written

        @contextmanager
        def written(activations):
            with self.written(activations) as writer:
                yield writer
            self.sizes.append(sum(file.stat().st_size for file in self.directory.iterdir()))

        Activations.written = written

    def __exit__(self, *_):
        Activations.written = self.written


def damages(survey):
    list(survey.run())
    return survey.damages()


@torch.no_grad()
def of_whole_model(path):
    """The same by the whole model, one layer and one block at a time."""
    model = transformers.AutoModelForCausalLM.from_pretrained(path).eval()
    name = blocks_of(model)
    convert(model, CompressionPlan.uniform(model, find_targets(model), NM(1, 1)))
    outputs = []
    moments = input_moments(model, [{"input_ids": ids} for ids in IDS], lambda batch: model(**batch))
    layers = linear_layers(model)

    def passed(watched):
        """The logits, and what comes out of one block."""
        outputs.clear()
        hook = watched.register_forward_hook(lambda _, __, out: outputs.append(out if torch.is_tensor(out) else out[0]))
        logits = torch.cat([model(input_ids=ids).logits.flatten(0, 1) for ids in IDS])
        hook.remove()
        return logits.double(), torch.cat([each.double() for each in outputs])

    found = {}
    for index, block in enumerate(model.get_submodule(name)):
        logits, dense = passed(block)
        inside = {each: layer for each, layer in layers.items() if each.startswith(f"{name}.{index}.")}
        weights = {each: layer.matrix.clone() for each, layer in inside.items()}
        points = {
            each: {str(s): Problem(weights[each], moments[each], 0.01).point(s, ITERATIONS) for s in SETS}
            for each in inside
        }
        changes = {}
        for each, layer in inside.items():
            changes[each] = {}
            for words, point in points[each].items():
                layer.matrix.copy_(point)
                changes[each][words] = ((passed(block)[1] - dense).square().sum() / dense.square().sum()).item()
                layer.matrix.copy_(weights[each])
        for each, layer in inside.items():
            layer.matrix.copy_(points[each][str(ANCHOR)])
        after, moved = passed(block)
        for each, layer in inside.items():
            layer.matrix.copy_(weights[each])
        divergence = F.kl_div(after.log_softmax(1), logits.softmax(1), reduction="sum") / len(logits)
        gain = divergence.item() / ((moved - dense).square().sum() / dense.square().sum()).item()
        found |= {each: {words: gain * change for words, change in row.items()} for each, row in changes.items()}
    return found


@pytest.mark.parametrize("make", [llama, gpt2, gemma], ids=lambda make: make.__name__)
def test_the_damages_are_those_of_the_whole_model_looked_at_one_layer_at_a_time(make, tmp_path):
    path = saved(make, tmp_path / "dense")
    found, expected = damages(opened(path, tmp_path / "run")), of_whole_model(path)
    assert found.keys() == expected.keys()
    for layer, row in expected.items():
        assert found[layer] == pytest.approx(row, rel=2e-2)
        assert min(row.values()) > 0


def test_what_a_block_does_not_pass_on_does_no_damage(tmp_path):
    model = llama()
    for layer in (model.model.layers[1].mlp.down_proj, model.model.layers[1].self_attn.o_proj):
        torch.nn.init.zeros_(layer.weight)
    model.save_pretrained(tmp_path / "dense")
    found = damages(opened(tmp_path / "dense", tmp_path / "run"))
    assert {each for row in found.values() for each in row.values() if each == 0.0} == {0.0}
    silent = {layer for layer, row in found.items() if not any(row.values())}
    assert silent == {layer for layer in found if layer.startswith("model.layers.1.")}


def test_layers_without_a_set_to_choose_are_left_as_they_are(tmp_path):
    survey = opened(saved(untied, tmp_path / "dense"), tmp_path / "run")
    pinned = "model.layers.0.mlp.up_proj"
    survey.candidates = {layer: [] if layer == pinned else each for layer, each in survey.candidates.items()}
    whole, left = damages(opened(tmp_path / "dense", tmp_path / "whole")), damages(survey)
    assert survey.candidates.keys() - left.keys() == {pinned}
    behind = {layer for layer in left if layer.startswith("model.layers.1.")}
    assert all(left[layer] == whole[layer] for layer in behind)
    assert all(left[layer] != whole[layer] for layer in left.keys() - behind)  # the gain is of a block with dense parts


def test_a_kill_at_any_file_operation_is_gone_on_from_with_the_same_damages(tmp_path):
    path, run = saved(untied, tmp_path / "dense"), tmp_path / "whole" / "run"
    run.mkdir(parents=True)
    with Snapshots(run, tmp_path / "snapshots") as taken:
        expected = damages(opened(path, run, [ANCHOR]))
    stopped = [tmp_path / "snapshots" / str(number) / "run" for number in range(1, 1 + len(taken.seen))]
    assert len(stopped) > 10
    for directory in (run, *stopped):
        assert damages(opened(path, directory, [ANCHOR])) == expected
        assert {each.name for each in directory.iterdir()} == {"0000.json", "0001.json", "divergences.json"}


def test_blocks_that_were_looked_at_are_not_looked_at_again_unless_their_hidden_states_are_gone(tmp_path):
    path = saved(llama, tmp_path / "dense")
    stopped = opened(path, tmp_path / "run").run()
    assert [next(stopped), next(stopped)] == [0, 1]
    stopped.close()
    assert opened(path, tmp_path / "run").done == 2
    (tmp_path / "run" / "activations" / "anchor-0000-0002").unlink()
    assert list(opened(path, tmp_path / "run").run()) == [0, 1, 2]


@pytest.mark.parametrize("make", [wide, deep], ids=lambda make: make.__name__)
def test_the_tensors_and_the_files_that_are_there_at_once_are_no_more_than_predicted(make, tmp_path):
    survey = opened(saved(make, tmp_path / "dense"), tmp_path / "run", [ANCHOR])
    settings = dataclasses.replace(survey.settings, windows=sum(len(each) for each in IDS), batch=len(IDS[0]))
    told = predict(survey.decoder, settings, IDS[0].shape[1], IDS[0].numel(), surveyed=True)
    sizes = []
    with Tally() as tally, Watched(survey.activations, sizes):
        list(survey.run())
    workspace = 2 * 8 * 256**2 if make is wide else 0  # LAPACK's own, of the largest layer, is in no tensor
    piece = 0 if make is wide else 3 * 4 * 5000 * 96  # of a large matrix, while it is read and looked at
    assert 0.7 < (tally.peak + workspace) / (told.survey - PROCESS + piece) <= 1
    assert 0.9 < max(sizes) / told.disk <= 1


def test_a_job_with_a_budget_searches_its_plan_once_and_compresses_under_it(place, tmp_path, capsys):  # noqa: F811
    directory, words = tmp_path / "decoder", ["budget.ratio=0.11", "blockwise.steps=0"]
    content = blockwise(job(place, directory, *words))
    survey = json.loads((directory / "search" / "survey.json").read_text())
    plan, model = CompressionPlan.load(directory / "plan.json"), load_packed(directory / "packed")
    assert content["plan"] == {"name": "searched@0.11", "fingerprint": survey["plan"]}
    assert plan.fingerprint == survey["plan"]
    layers = plan.layers.items()
    assert sum(8 * spec.weight.storage(spec.shape).nbytes for _, spec in layers) == survey["cost"] <= survey["limit"]
    assert {name: str(spec.weight) for name, spec in layers} == survey["sets"]
    assert all(spec.activations is not None for _, spec in layers)  # as the plan of the command has it
    assert survey["predicted"] <= min(each["predicted"] for each in survey["uniform"].values())
    assert all(spec.weight.contains(model.get_parameter(f"{name}.weight")) for name, spec in layers)
    assert "searched in" in capsys.readouterr().err
    (directory / "blocks.json").unlink()
    before = (directory / "search" / "survey.json").stat().st_mtime_ns
    again = blockwise(job(place, directory, *words, "resume=true"))
    assert again["scores"] == content["scores"]
    assert (directory / "search" / "survey.json").stat().st_mtime_ns == before
    with pytest.raises(FileNotFoundError, match="holds no run"):
        load_runs(directory)
    with pytest.raises(RefusedError, match=r"budget\.ratio"):
        blockwise(job(place, directory, "budget.ratio=0.12", "blockwise.steps=0", "resume=true"))


def test_tied_layers_dense_candidates_and_a_budget_of_the_whole_file_are_kept(place, tmp_path):  # noqa: F811
    words = [
        "search.candidates.tie=attention",
        "search.candidates.sets=[dense,int4,3:7,2:4+int4g8]",
        "blockwise.steps=0",
    ]
    words += ["plan.embeddings=int8", "budget.whole_model_bytes=30000"]
    blockwise(job(place, tmp_path / "decoder", *words))
    sets = json.loads((tmp_path / "decoder" / "search" / "survey.json").read_text())["sets"]
    assert "3:7" not in sets.values()  # which no layer has columns for
    for index in range(2):
        assert len({sets[f"model.layers.{index}.self_attn.{part}_proj"] for part in "qkv"}) == 1
    assert (tmp_path / "decoder" / "packed" / "model.safetensors").stat().st_size <= 30000


def test_what_would_fail_after_the_survey_is_refused_before_it(place, tmp_path):  # noqa: F811
    with pytest.raises(ValueError, match="rejects"):
        blockwise(job(place, tmp_path / "head", "budget.ratio=0.2", "plan.head=32x32@0.5", "plan.embeddings=3:7"))
    blockwise(job(place, tmp_path / "plain", "blockwise.steps=0"))
    before = sorted(each.name for each in (tmp_path / "plain").iterdir())
    with pytest.raises(RefusedError, match="belongs to a job without a budget"):
        blockwise(job(place, tmp_path / "plain", "blockwise.steps=0", "budget.ratio=0.2", "resume=true"))
    assert not (tmp_path / "head").exists()
    assert sorted(each.name for each in (tmp_path / "plain").iterdir()) == before


def test_a_survey_that_begins_anew_takes_nothing_of_the_one_that_was_there(place, tmp_path):  # noqa: F811
    words = ["blockwise.steps=0", "budget.ratio=0.11"]
    first = blockwise(job(place, tmp_path / "first", *words))
    survey(job(place, tmp_path / "other" / "search", "blockwise.steps=0", "budget.ratio=0.5"))
    again = survey(job(place, tmp_path / "other" / "search", *words))
    assert again["plan"] == first["plan"]["fingerprint"]
