"""A decoder compressed block by block is the one that is compressed whole, in less memory, whatever stops it."""

import copy
import json
import re
import shutil
import sys
import weakref
from pathlib import Path

import hydra
import pytest
import torch
import transformers
from campaign import Snapshots
from rich.console import Console
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from nxmiformer import cli, load_packed
from nxmiformer.applied.convert import convert
from nxmiformer.blockwise.decoder import Decoder, blank, blocks_of
from nxmiformer.blockwise.memory import PROCESS, predict
from nxmiformer.blockwise.passage import Passage
from nxmiformer.blockwise.score import batches, score
from nxmiformer.blockwise.settings import Blockwise
from nxmiformer.blockwise.stored import Checkpoint, Packed, shapes_of
from nxmiformer.blockwise.windows import calibration
from nxmiformer.errors import RefusedError
from nxmiformer.export.assembled import assembling
from nxmiformer.export.joined import join
from nxmiformer.jobs.blockwise import blockwise
from nxmiformer.jobs.sweep import Ended
from nxmiformer.jobs.work import work
from nxmiformer.layers.found import compressed_layers
from nxmiformer.layers.inputs import Activations
from nxmiformer.layers.moments import input_moments
from nxmiformer.layers.targets import find_targets
from nxmiformer.optim.reconstruct import Problem
from nxmiformer.plan.compression import CompressionPlan
from nxmiformer.report.table import blockwise_summary
from nxmiformer.runs.many import load_runs
from nxmiformer.sets import NM, Grid, Then
from nxmiformer.tasks.batches import Examples
from nxmiformer.tasks.causal import Causal

sys.path.append(str(Path(__file__).parents[1] / "tasks"))
from languages import NARROW, seeded, sentences, tokenizer, written

JOINT = Then(NM(2, 4), Grid(4, group=8))
EIGHT = Activations(8)
HEAD = "AutoModelForCausalLM"
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
TOKENS = {"vocab_size": 30, "bos_token_id": 1, "eos_token_id": 1}


def llama():
    """Grouped heads, and a head that is the embedding."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
    more = {"intermediate_size": 32, "max_position_embeddings": 32, "tie_word_embeddings": True}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**TOKENS, **sizes, **more))


def untied():
    config = transformers.LlamaConfig(**TOKENS, hidden_size=16, num_hidden_layers=2, num_attention_heads=2)
    config.intermediate_size, config.max_position_embeddings = 32, 32
    return transformers.LlamaForCausalLM(config)


def gpt2():
    """Weights that are stored the other way round, positions that are learned."""
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(**TOKENS, n_embd=16, n_layer=2, n_head=2, n_positions=32)
    )


def gemma():
    """Blocks of two kinds, which are called with other masks and positions."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    more = {
        "intermediate_size": 32,
        "max_position_embeddings": 32,
        "head_dim": 8,
        "sliding_window": 4,
        "pad_token_id": 0,
    }
    return transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**TOKENS, **sizes, **more))


MODELS = [llama, gpt2, gemma]
IDS = list(torch.randint(30, (3, 2, 12), generator=torch.Generator().manual_seed(0)))


def saved(make, path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        make().save_pretrained(path)
    return path


def planned(model, activations):
    return CompressionPlan.uniform(model, find_targets(model), JOINT, activations)


def opened(path, directory, activations=EIGHT, planning=planned, **settings):
    """A passage through the checkpoint, and the tensors of the checkpoint."""
    model = blank(path, HEAD, torch.float32)
    plan = planning(model, activations)
    convert(model, plan)
    decoder = Decoder(model, plan, torch.device("cpu"))
    dense = Checkpoint(path, shapes_of(model, decoder.shared), model.base_model_prefix)
    return Passage(decoder, dense, IDS, Blockwise(**{"iterations": 3, **settings}), directory, seed=1)


def assembled(passage, path):
    with assembling(passage.decoder.model, passage.decoder.plan, passage.files, path):
        pass
    return load_packed(path)


@pytest.fixture(scope="module", params=MODELS, ids=lambda make: make.__name__)
def finished(request, tmp_path_factory):
    """A checkpoint, the model that came of it, what it came by, and what came into each block."""
    place = tmp_path_factory.mktemp(request.param.__name__)
    passage = opened(saved(request.param, place / "dense"), place / "run")
    seen = []
    for index, _ in passage.run():
        flow = passage.compressed.at(index + 1)
        seen += [[flow.read(number, torch.device("cpu")) for number in range(len(IDS))]] if flow.path.exists() else []
    return place / "dense", assembled(passage, place / "packed"), passage, seen


@torch.no_grad()
def test_what_comes_into_a_block_is_what_the_model_with_the_compressed_blocks_before_it_has_there(finished):
    _, model, _, seen = finished
    assert len(seen) == model.config.num_hidden_layers - 1
    for number, ids in enumerate(IDS):
        states = model(input_ids=ids, output_hidden_states=True).hidden_states
        for index, found in enumerate(seen, start=1):
            assert torch.equal(found[number], states[index])


def test_without_training_the_result_is_that_of_reconstructing_the_whole_model_layer_by_layer(finished):
    path, model, passage, _ = finished
    whole = transformers.AutoModelForCausalLM.from_pretrained(path).eval()
    plan, name = passage.decoder.plan, blocks_of(whole)
    convert(whole, plan)
    for index in range(len(passage.decoder.blocks)):
        layers = {n: m for n, m in compressed_layers(whole).items() if n.startswith(f"{name}.{index}.")}
        for other in compressed_layers(whole).values():  # blocks before this one are as they will be
            other.inputs.active = other in list(compressed_layers(whole).values())[: len(layers) * index]
        found = input_moments(whole, [{"input_ids": ids} for ids in IDS], lambda batch: whole(**batch))
        for each, layer in layers.items():
            problem = Problem(layer.matrix.detach(), found[each])
            with torch.no_grad():
                layer.matrix.copy_(problem.point(plan.layers[each].weight, 3))
    expected = whole.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())


def test_the_packed_model_is_written_whole_without_ever_being_whole_in_memory(finished):
    path, model, passage, _ = finished
    dense = transformers.AutoModelForCausalLM.from_pretrained(path)
    assert type(model) is type(dense)
    for layer, spec in passage.decoder.plan.layers.items():
        weight = model.get_parameter(f"{layer}.weight")
        assert spec.weight.contains(weight.t() if spec.transposed else weight)
    rest = {name: value for name, value in dense.state_dict().items() if not name.endswith("weight") or value.ndim == 1}
    assert all(torch.equal(model.state_dict()[name], value) for name, value in rest.items())
    assert all(each.device.type == "meta" for each in passage.decoder.model.parameters())


def test_a_packed_decoder_writes_the_tokens_of_the_unpacked_one_padded_on_the_left_too(finished, tmp_path):
    _, model, passage, _ = finished
    plain = copy.deepcopy(model)
    for layer in set(compressed_layers(plain).values()):
        layer.inputs.active = True  # it quantizes its inputs either way
    place = tmp_path / "packed"
    assembled(passage, place)
    read = transformers.AutoModelForCausalLM.from_pretrained(place)
    lazy = load_packed(place, lazy=True)
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    expected = plain.generate(IDS[0], **options)
    for each in (read, lazy):
        assert torch.equal(each.generate(IDS[0], **options), expected)
    short, long = IDS[0][:1, :3], IDS[0][1:2, :5]
    padded = {"input_ids": F.pad(short, (2, 0)), "attention_mask": F.pad(torch.ones_like(short), (2, 0))}
    both = {
        "input_ids": torch.cat([padded["input_ids"], long]),
        "attention_mask": torch.cat([padded["attention_mask"], torch.ones_like(long)]),
    }
    written = read.generate(**both, min_new_tokens=8, **options)[:, 5:]
    for text, tokens in zip((short, long), written, strict=True):
        alone = read.generate(text, attention_mask=torch.ones_like(text), min_new_tokens=8, **options)
        assert torch.equal(tokens, alone[0, text.shape[1] :])


@pytest.mark.parametrize("make", [untied, gpt2])
def test_training_takes_no_block_farther_from_the_dense_output_and_ends_in_the_sets(make, tmp_path):
    passage = opened(saved(make, tmp_path / "dense"), tmp_path / "run", steps=6, lr=1e-2)
    found = [facts["output"] for _, facts in passage.run()]
    assert all(each["after"] < each["before"] for each in found)
    assembled(passage, tmp_path / "packed")  # which would refuse what is in no set
    harmful = opened(tmp_path / "dense", tmp_path / "harmful", steps=2, lr=1e3)
    assert all(facts["output"]["after"] == facts["output"]["before"] for _, facts in harmful.run())


def test_a_kill_at_any_file_operation_is_gone_on_from_with_the_same_bits(tmp_path):
    path, run, results = saved(untied, tmp_path / "dense"), tmp_path / "whole" / "run", set()
    run.mkdir(parents=True)
    with Snapshots(run, tmp_path / "snapshots") as taken:
        list(opened(path, run, steps=1, iterations=1).run())
    stopped = [tmp_path / "snapshots" / str(number) / "run" for number in range(1, 1 + len(taken.seen))]
    assert len(stopped) > 20
    for place in (run, *stopped[::3]):
        passage = opened(path, place, steps=1, iterations=1)
        list(passage.run())
        join(passage.files, tmp_path / "joined", {})
        results.add((tmp_path / "joined").read_bytes())
        assert [each.name for each in place.iterdir()] == ["blocks"]
        assert len(list((place / "blocks").iterdir())) == 3
    assert len(results) == 1


def test_what_a_killed_passage_has_packed_is_not_done_again(tmp_path):
    path = saved(llama, tmp_path / "dense")
    stopped = opened(path, tmp_path / "run").run()
    assert next(stopped)[0] == 0
    stopped.close()
    assert [index for index, _ in opened(path, tmp_path / "run").run()] == [1, 2]
    shutil.rmtree(tmp_path / "run" / "activations", ignore_errors=True)
    assert list(opened(path, tmp_path / "run").run()) == []


def whole_plan(model, activations):
    """Embedding and head too: outside the blocks there are no inputs to reconstruct on."""
    targets = find_targets(model, ["*"])
    return CompressionPlan.uniform(model, targets, Grid(8), None)


def test_what_is_in_no_block_is_projected_onto_its_set(tmp_path):
    path = saved(untied, tmp_path / "dense")
    passage = opened(path, tmp_path / "run", planning=whole_plan)
    list(passage.run())
    model = assembled(passage, tmp_path / "packed")
    head = transformers.AutoModelForCausalLM.from_pretrained(path).lm_head.weight
    assert torch.equal(model.lm_head.weight, Grid(8).project(head.detach()))


# Scores.


def windows(lengths):
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(30, (length,), generator=generator).tolist() for length in lengths]
    features = [{"input_ids": row, "attention_mask": [1] * len(row), "labels": row} for row in rows]
    return Examples(features, {"input_ids": 0, "attention_mask": 0, "labels": -100}, {}, [row[1:] for row in rows])


def test_a_score_block_by_block_is_that_of_the_whole_model(finished, tmp_path):
    path, model, passage, _ = finished
    task, examples = Causal(path="nowhere.txt"), windows([10, 10, 10, 7, 5])
    dense = transformers.AutoModelForCausalLM.from_pretrained(path).eval()
    assembled(passage, tmp_path / "packed")
    packed = Packed(tmp_path / "packed" / "model.safetensors", passage.decoder.plan, torch.float32)
    for whole, stored, quantized in ((dense, passage.dense, False), (model, packed, True)):
        answers = []
        for numbers in batches(examples.lengths(), 2):
            ids = torch.tensor([examples.features[number]["input_ids"] for number in numbers])
            with torch.no_grad():
                outputs = whole(input_ids=ids)
            answers += task.answers(task.units(outputs, {"labels": ids}), {"labels": ids})
        found = score(passage.decoder, stored, task, examples, 2, tmp_path / "scored", quantized)
        assert found == task.score(answers, examples.truths)
    assert list((tmp_path / "scored").iterdir()) == []


# What is refused, before anything is done.


def xlm():
    return transformers.XLMConfig(n_words=30, emb_dim=16, n_layers=2, n_heads=2, is_decoder=True, causal=True)


def test_a_model_that_is_not_one_list_of_blocks_is_refused_with_the_lists_that_it_has(tmp_path):
    xlm().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"lists of a XLMWithLMHeadModel are: transformer\.attentions \(2\), .* whole"):
        blocks_of(blank(tmp_path, HEAD, torch.float32))
    with pytest.raises(ValueError, match="the lists of a Linear are: none"):
        blocks_of(nn.Linear(2, 2))


def test_blocks_that_share_weights_are_refused():
    model = llama()
    model.model.layers[2].mlp.up_proj.weight = model.model.layers[0].mlp.up_proj.weight
    with pytest.raises(ValueError, match=r"model\.layers\.0\.mlp\.up_proj\.weight and model\.layers\.2\.mlp\.up_proj"):
        blocks_of(model)


def test_a_checkpoint_without_its_tensors_is_refused_with_their_names(tmp_path):
    saved(llama, tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"there is no model\.safetensors and no model\.safetensors\.index\.json"):
        opened(tmp_path, tmp_path / "run")
    save_file({"model.norm.weight": torch.ones(3)}, tmp_path / "model.safetensors")
    with pytest.raises(
        ValueError,
        match=r"29 tensors of the model are not in the checkpoint under .*: model\.embed_tokens\.weight is missing",
    ):
        opened(tmp_path, tmp_path / "run")


def test_a_value_that_is_not_finite_is_told_with_its_tensor(tmp_path):
    broken = untied()
    torch.nn.init.constant_(broken.model.layers[1].mlp.up_proj.weight, float("nan"))
    broken.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.up_proj\.weight: .*safetensors: a value is not finite"):
        list(opened(tmp_path, tmp_path / "run", iterations=1).run())


def test_a_checkpoint_in_several_files_or_of_the_backbone_alone_is_read_as_one_file(tmp_path):
    saved(llama, tmp_path / "one")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "many", max_shard_size="5kB")
    assert json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    model.model.save_pretrained(tmp_path / "backbone")
    expected = model.state_dict()
    for name in ("many", "backbone"):
        passage = opened(tmp_path / "one", tmp_path / "run")
        shapes = shapes_of(passage.decoder.model, passage.decoder.shared)
        stored = Checkpoint(tmp_path / name, shapes, "model")
        assert all(torch.equal(stored.tensor(each, torch.float32), expected[each]) for each in shapes)


def test_windows_are_whole_and_drawn_by_the_seed():
    examples = windows([8] * 9 + [3])
    drawn = calibration(examples, 8, 6, 4, seed=0)
    assert [tuple(each.shape) for each in drawn] == [(4, 8), (2, 8)]
    again, other = (torch.cat(calibration(examples, 8, 6, 4, seed=seed)) for seed in (0, 1))
    assert torch.equal(torch.cat(drawn), again)
    assert not torch.equal(again, other)
    with pytest.raises(ValueError, match=r"blockwise\.windows=10: the training texts have 9 whole windows"):
        calibration(examples, 8, 10, 4, seed=0)


# Memory.


class Tally(TorchDispatchMode):
    """Counts the bytes of the tensors that operations make, while they are there."""

    def __init__(self):
        super().__init__()
        self.taken = self.peak = 0
        self.known = set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        made = operation(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self.count, made)
        return made

    def count(self, tensor):
        storage = tensor.untyped_storage()
        if tensor.device.type != "meta" and storage._cdata not in self.known:
            self.known.add(storage._cdata)
            self.taken += storage.nbytes()
            self.peak = max(self.peak, self.taken)
            weakref.finalize(storage, self.gone, storage._cdata, storage.nbytes())

    def gone(self, key, size):
        self.known.discard(key)
        self.taken -= size


def wide():
    sizes = {"hidden_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 256}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**TOKENS, **sizes, max_position_embeddings=32))


def coarse(model, activations):
    return CompressionPlan.uniform(model, find_targets(model), Then(NM(2, 4), Grid(4, scale="absmax")), activations)


def test_the_tensors_that_are_there_at_once_are_no_more_than_predicted_and_not_much_less(tmp_path):
    settings = {"iterations": 1, "steps": 1, "planning": coarse}
    passage = opened(saved(wide, tmp_path / "dense"), tmp_path / "run", None, **settings)
    told = predict(passage.decoder, passage.settings, IDS[0].shape[1], IDS[0].numel())
    with Tally() as tally:
        list(passage.run())
    workspace = 2 * 8 * 256**2  # LAPACK's own, of the largest layer, is in no tensor
    assert 0.85 < (tally.peak + workspace) / (told.blocks - PROCESS) <= 1


# The job.


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A checkpoint with its tokenizer, and texts."""
    place = tmp_path_factory.mktemp("job")
    model = seeded(transformers.LlamaForCausalLM, transformers.LlamaConfig(**NARROW, **SIZES))
    model.save_pretrained(place / "dense")
    tokenizer("$A").save_pretrained(place / "dense")
    (place / "texts").mkdir()
    for name, count in (("train", 40), ("test", 8)):
        written(place / "texts" / f"{name}.jsonl", text=sentences(count))
    return place


def job(place, directory, *overrides):
    words = ["job=blockwise", "name=decoder", "task=causal", "task.validation_split=test", "model=pretrained"]
    words += [f"task.path={place / 'texts'}", f"model.path={place / 'dense'}", "plan.weight.second.group=8"]
    words += ["blockwise.windows=4", "blockwise.batch=2", "blockwise.iterations=1", "blockwise.steps=2"]
    words += ["train.max_length=16", "train.cpu=true", "train.threads=1", *overrides]
    with hydra.initialize_config_module("nxmiformer.conf", version_base="1.3"):
        return cli.build(hydra.compose("config", words), directory)


def test_a_job_leaves_a_packed_model_with_its_scores_and_is_not_done_twice(place, tmp_path, capsys):
    directory = tmp_path / "decoder"
    content = blockwise(job(place, directory))
    names = {"blocks.json", "packed", "plan.json", "run.json"}
    assert {each.name for each in directory.iterdir()} == names
    assert json.loads((directory / "blocks.json").read_text()) == content
    model, examples = load_packed(directory / "packed"), content["task"]["validation"]
    assert CompressionPlan.load(directory / "plan.json").fingerprint == content["plan"]["fingerprint"]
    assert transformers.AutoTokenizer.from_pretrained(directory / "packed")("a b")["input_ids"] == [5, 6]
    assert len(content["blocks"]) == model.config.num_hidden_layers
    assert examples > 2
    assert all(1 < scores["perplexity"] < 100 for scores in content["scores"].values())
    assert f"{content['scores']['packed']['perplexity']:.4g}" in (directory / "packed" / "README.md").read_text()
    told = capsys.readouterr().err
    assert "for the blocks, " in told
    assert "of hidden states" in told
    ended = Ended()
    work("blockwise", lambda: job(place, directory, "resume=true"), directory, ended, sweeping=True)
    assert (ended.state, ended.value) == ("skipped", content["scores"]["packed"]["perplexity"])
    assert json.loads((directory / "blocks.json").read_text()) == content
    with pytest.raises(RefusedError, match=r"blockwise\.steps"):
        blockwise(job(place, directory, "resume=true", "blockwise.steps=3"))
    assert {each.name for each in directory.iterdir()} == names
    with pytest.raises(FileNotFoundError, match="holds no run"):
        load_runs(directory)
    Console().print(blockwise_summary(content))
    assert "perplexity in" in capsys.readouterr().out


REFUSED = {
    "task=masked": "job=blockwise compresses decoders of plain text: task=causal, not task=masked",
    "budget.latency=0.5": "job=blockwise searches under a budget of bytes",
    "budget.ratio=0.01": "budget 0.01 is too small: the least is budget.ratio=",
    "budget.ratio=0.2 search.frontier=2": "no whole model to measure: leave out search.frontier",
    "budget.ratio=0.2 plan.include=[*]": "sets of layers in blocks, and lm_head is in none: plan.exclude=[lm_head]",
    "model.keep_layers=[0]": "job=blockwise compresses all layers",
    "plan.everything=int8": "plan.everything is learned in training",
    "plan.activations.ranges=ema": "plan.activations.ranges=ema is learned in training",
    "plan.activations.ranges=static": "plan.activations.ranges=static is learned in training",
    "model.dtype=bfloat16": "blockwise.steps=2 trains in model.dtype: float32, not bfloat16",
    "blockwise.windows=99": "blockwise.windows=99: the training texts have ",
    "model.path={xlm}": "job=blockwise takes a decoder that is one list of blocks, and the lists of a XLMWithLMHead",
}


@pytest.mark.parametrize("word", REFUSED)
def test_what_cannot_be_done_is_refused_before_anything_is(place, tmp_path, word):
    transformers.AutoModelForCausalLM.from_config(xlm()).save_pretrained(tmp_path / "xlm")
    tokenizer("$A").save_pretrained(tmp_path / "xlm")
    with pytest.raises(ValueError, match=re.escape(REFUSED[word])):
        blockwise(job(place, tmp_path / "run", *word.format(xlm=tmp_path / "xlm").split()))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "wrong", [{"windows": 0}, {"batch": 0}, {"steps": -1}, {"lr": 0.0}, {"damping": -1.0}], ids=str
)
def test_settings_out_of_range_are_named(wrong):
    with pytest.raises(ValueError, match=rf"blockwise\.{next(iter(wrong))} must be"):
        Blockwise(**wrong)
