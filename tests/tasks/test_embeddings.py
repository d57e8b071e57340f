"""Embeddings: pooling, scores and halves against slow twins; a run without labels; what is refused."""

import json
import math

import hydra
import hypothesis
import numpy as np
import pytest
import torch
import transformers
from hypothesis import strategies
from languages import (
    NARROW,
    check_batches_do_not_matter,
    check_reloads,
    rows,
    seeded,
    sentences,
    tokenizer,
    units_of,
    written,
)
from scipy import stats
from torch.nn import functional as F
from whole import packed_run

import nxmiformer as nx
from nxmiformer.export.onnx import Onnx
from nxmiformer.jobs.build import build
from nxmiformer.jobs.search import search
from nxmiformer.models.source import Pretrained
from nxmiformer.tasks.embeddings import POOLINGS, Embeddings, pooled, recall
from nxmiformer.train.evaluate import Answers, looks

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
CONFIG = transformers.BertConfig(**NARROW, **SIZES, initializer_range=0.3)
PAIRS = {"first": sentences(24), "second": sentences(24, seed=1), "alike": [(7 * i % 24) / 4 for i in range(24)]}
LABELLED = {"columns": ["first", "second"], "label": "alike"}


def bert():
    return seeded(transformers.BertModel, CONFIG)


def encoded(given, tokens=None, length=16, **fields):
    return Embeddings(path="nowhere", **fields).encode(rows(**given), tokens or tokenizer(), length, CONFIG)


def vector(model, text, pooling="mean", tokens=None):
    """The twin: one text, without padding."""
    with torch.no_grad():
        states = model(**(tokens or tokenizer())(text, return_tensors="pt")).last_hidden_state[0].double()
    return F.normalize({"mean": states.mean(0), "first": states[0], "last": states[-1]}[pooling], dim=0)


def composed(directory, *overrides):
    told = ["name=tiny", "model=pretrained", "model.path=bert-base-uncased", "task=embeddings", *overrides]
    with hydra.initialize_config_module("nxmiformer.conf", version_base="1.3"):
        return build(hydra.compose("config", told), directory / "run")


@hypothesis.given(
    strategies.lists(
        strategies.lists(strategies.booleans(), min_size=5, max_size=5).filter(any), min_size=1, max_size=4
    ),
    strategies.sampled_from(POOLINGS),
)
def test_a_vector_is_of_the_tokens_that_the_mask_counts(masks, pooling):
    states = torch.randn(len(masks), 5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = pooled(states, torch.tensor(masks).long(), pooling)
    for text, mask, got in zip(states, masks, found, strict=True):
        kept = [state for state, counts in zip(text, mask, strict=True) if counts]
        expected = {"mean": sum(kept) / len(kept), "first": kept[0], "last": kept[-1]}[pooling]
        torch.testing.assert_close(got, expected)


@hypothesis.given(strategies.integers(1, 6), strategies.integers(0, 50))
def test_recall_is_the_share_of_texts_whose_nearest_other_text_is_their_own(count, seed):
    chance = torch.Generator().manual_seed(seed)
    first = torch.randn(count, 4, generator=chance)
    pairs = F.normalize(torch.stack([first, first + 0.7 * torch.randn(count, 4, generator=chance)], 1), dim=-1)
    texts = [(pair, side) for pair in range(count) for side in (0, 1)]
    found = 0
    for pair, side in texts:
        others = [each for each in texts if each != (pair, side)]
        nearest = max(others, key=lambda each: float(pairs[each] @ pairs[pair, side]))
        found += nearest == (pair, 1 - side)
    assert recall(pairs) == found / len(texts)


def test_texts_that_are_all_alike_find_nothing():
    assert recall(torch.ones(3, 2, 4) / 2) == 0.0


def gpt2():
    config = transformers.GPT2Config(
        n_embd=16, n_layer=1, n_head=2, n_positions=32, vocab_size=28, initializer_range=0.3
    )
    return seeded(transformers.GPT2Model, config)


@pytest.mark.parametrize("side", ["right", "left"])  # where the tokenizer pads
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("make", [bert, gpt2])
def test_neither_padding_nor_the_other_text_of_a_pair_changes_a_vector(make, side, pooling):
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if make is bert else [])]
    tokens, model = tokenizer(padding_side=side, model_input_names=names), make()
    task = Embeddings(path="nowhere", pooling=pooling, **LABELLED)
    examples = encoded(PAIRS, tokens, pooling=pooling, **LABELLED)
    check_batches_do_not_matter(task, model, examples)
    _, answers = units_of(task, model, examples, 5)
    for number, pair in enumerate(answers):
        for given, column in zip(pair, ("first", "second"), strict=True):
            twin = vector(model, PAIRS[column][number], pooling, tokens)
            np.testing.assert_allclose(given, twin.numpy(), atol=1e-5)
    for feature in examples.features:
        assert len({len(row) for row in feature.values()}) == 1


def test_padding_is_not_pooled_where_the_model_takes_no_mask():
    tokens = tokenizer(model_input_names=["input_ids"])
    for pooling in POOLINGS:
        task = Embeddings(path="nowhere", pooling=pooling, **LABELLED)
        batch = encoded(PAIRS, tokens, pooling=pooling, **LABELLED).batch(range(6), "cpu")
        assert set(task.inputs(batch)) == {"input_ids"}
        states = torch.randn(12, batch["input_ids"].shape[1], 3, generator=torch.Generator().manual_seed(0))
        real = task.inputs(batch)["input_ids"] != tokens.pad_token_id
        units = task.units({"last_hidden_state": states}, batch)
        torch.testing.assert_close(units.logits, F.normalize(pooled(states, real.long(), pooling), dim=-1))


def test_with_a_label_the_score_is_the_correlation_of_the_cosines_with_it():
    task, model = Embeddings(path="nowhere", **LABELLED), bert()
    answers = Answers(task, encoded(PAIRS, **LABELLED))
    for look in looks(lambda inputs: model(**inputs), task, answers.examples, 5, "cpu"):
        answers.add(look)
    cosines = [
        float(vector(model, first) @ vector(model, second))
        for first, second in zip(PAIRS["first"], PAIRS["second"], strict=True)
    ]
    expected = {
        "spearman": stats.spearmanr(cosines, PAIRS["alike"]).statistic,
        "pearson": stats.pearsonr(cosines, PAIRS["alike"]).statistic,
    }
    assert answers.score() == pytest.approx(expected, abs=1e-5)
    assert task.metric == "spearman"
    assert task.chance(PAIRS["alike"]).score == 0


def test_without_a_label_each_text_is_cut_in_halves_that_must_find_each_other():
    task, tokens = Embeddings(path="nowhere"), tokenizer()
    examples = task.encode(rows(text=["a b c d e", "f g"]), tokens, 16, CONFIG)
    read = [
        tuple(tokens.decode(feature[f"{which}input_ids"], skip_special_tokens=True) for which in ("", "second_"))
        for feature in examples.features
    ]
    assert read == [("a b", "c d e"), ("f", "g")]
    assert task.metric == "recall_at_1"
    score = task.score([np.eye(4)[[0, 0]], np.eye(4)[[1, 2]]], examples.truths)
    assert score == {"recall_at_1": 0.5}
    guessed = task.chance(examples.truths)
    assert (guessed.score, guessed.error) == (1 / 3, math.sqrt(1 / 3 * 2 / 3 / 4))


def test_texts_without_halves_are_left_out_and_told(tmp_path, caplog):
    path = tmp_path / "texts.txt"
    path.write_text("\n".join([*sentences(30), "", "alone"]) + "\n")
    with caplog.at_level("INFO"):
        splits = Embeddings(path=str(path)).splits()
    assert sum(map(len, splits.values())) == 30
    assert "2 texts of fewer than two words" in caplog.text


def test_a_model_without_a_head_is_compressed_from_texts_alone_and_read_back(tmp_path):
    (tmp_path / "pairs").mkdir()
    for split in ("train", "validation"):
        written(tmp_path / "pairs" / f"{split}.jsonl", **PAIRS)
    path = tmp_path / "pairs"
    given = [f"task.path={path}", "task.columns=[first,second]", "task.label=alike"]
    tokens = tokenizer()
    content, model, packed = packed_run(tmp_path, bert(), tokens, "task=embeddings", *given)
    assert type(model).__name__ == "BertModel"
    assert "dense" not in content["phases"]
    assert content["scores"]["dense"] != content["scores"]["final"]
    assert "mean of the last hidden states" in content["task"]["measured"]
    check_reloads(Embeddings(path=str(path), **LABELLED), content, model, packed)
    again = transformers.AutoModel.from_pretrained(packed)
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    dense = transformers.AutoModel.from_pretrained(tmp_path / "run" / "dense")
    for name, tensor in bert().state_dict().items():
        assert torch.equal(dense.state_dict()[name], tensor), name


def test_distillation_brings_the_vectors_nearer_to_the_dense_models(tmp_path):
    data = rows(text=sentences(200))
    model, tokens = bert(), tokenizer()
    steps = ["recipe.phases.admm.steps=40", "recipe.phases.finish.steps=80"]
    rates = [f"recipe.phases.{phase}.optimizer.lr=3e-3" for phase in ("admm", "finish")]
    found = nx.compress(
        model,
        data,
        tokenizer=tokens,
        task=Embeddings,
        plan=nx.Then(nx.NM(1, 4), nx.Grid(4)),
        directory=tmp_path / "run",
        overrides=["train.max_length=24", "train.batch_size=16", "train.cpu=true", *steps, *rates],
    )
    dense = bert()
    one_shot = bert()
    with torch.no_grad():
        for name, layer in found.plan.layers.items():
            weight = one_shot.get_parameter(f"{name}.weight")
            weight.copy_(layer.weight.project(weight))
    texts = sentences(40, seed=9)
    apart = {
        name: sum(1 - float(vector(each.eval(), text) @ vector(dense, text)) for text in texts) / len(texts)
        for name, each in (("one_shot", one_shot), ("trained", found.model))
    }
    assert apart["trained"] < 0.5 * apart["one_shot"]
    assert set(found.report["scores"]["packed"]) == {"recall_at_1"}


def test_the_onnx_file_has_the_hidden_states_that_are_pooled(tmp_path):
    path = written(tmp_path / "pairs.jsonl", **PAIRS)
    given = [f"task.path={path}", "task.columns=[first,second]", "task.label=alike"]
    _, model, _ = packed_run(tmp_path, bert(), tokenizer(), "task=embeddings", *given)
    task = Embeddings(path=str(path), **LABELLED)
    plan = nx.CompressionPlan.load(tmp_path / "run" / "plan.json")
    (tmp_path / "onnx").mkdir()
    Onnx().write(model, plan, tmp_path / "onnx")
    run = Onnx().read(tmp_path / "onnx", threads=1)
    batch = encoded(PAIRS, **LABELLED).batch(range(7), "cpu")
    with torch.no_grad():
        ours, theirs = (task.units(each(task.inputs(batch)), batch) for each in (lambda b: model(**b), run))
    assert ours.outcome.apart(ours.logits, theirs.logits).max() < 1e-3
    assert len(ours) == 14


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"columns": ["a", "b", "c"]}, "one text column, or the two of a pair"),
        ({"columns": ["a", "a"]}, "one text column, or the two of a pair"),
        ({"label": "alike"}, "name two columns, or leave the label out"),
        ({"pooling": "max"}, "task.pooling of embeddings 'max'"),
        ({"metric": "spearman"}, "without task.label 'spearman'"),
        ({**LABELLED, "metric": "recall_at_1"}, "with task.label 'recall_at_1'"),
    ],
)
def test_a_value_that_means_nothing_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Embeddings(path="nowhere", **fields)


def test_a_label_that_is_no_number_is_named_with_its_row(tmp_path):
    path = written(tmp_path / "pairs.jsonl", first=["a b", "c"], second=["d", "e"], alike=["much", "little"])
    with pytest.raises(ValueError, match=r"column 'alike', row 0.*'much'.*a number is expected"):
        Embeddings(path=str(path), **LABELLED).splits()


def test_a_model_of_an_encoder_and_a_decoder_is_refused():
    config = transformers.T5Config(vocab_size=28, d_model=16, num_layers=1, num_heads=2)
    with pytest.raises(ValueError, match="an encoder and a decoder"):
        Embeddings(path="nowhere").encode(rows(text=["a b"]), tokenizer(), 16, config)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["recipe=ste_qat"], r"phase 'ste_qat' learns from labels.*objective='\{task: 0.0"),
        (["recipe=obert", "recipe.phases.obert.objective={task: 0.0, logits: 1.0}"], "method.loss=objective"),
        (["sensitivity@search.sensitivity=loss_change"], "has no labels to learn from, and search.sensitivity looks"),
    ],
)
def test_a_recipe_that_needs_labels_is_refused_before_any_work(tmp_path, overrides, message):
    with pytest.raises(ValueError, match=message):
        composed(tmp_path, f"task.path={tmp_path}", *overrides)


def test_a_model_of_fewer_layers_is_refused_as_nothing_would_train_it(tmp_path):
    bert().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"model\.keep_layers: task=embeddings trains no dense model"):
        Pretrained(str(tmp_path), keep_layers=[0]).model(Embeddings(path="nowhere"), None, 0)


def test_the_surgeon_takes_what_the_phase_minimises(tmp_path):
    objective = "recipe.phases.obert.objective={task: 0.0, logits: 1.0}"
    job = composed(
        tmp_path, f"task.path={tmp_path}", "recipe=obert", objective, "recipe.phases.obert.method.loss=objective"
    )
    assert list(job.recipe.phases) == ["obert"]


def test_a_search_scores_plans_by_the_pairs(tmp_path):
    path = written(tmp_path / "pairs.jsonl", **{name: column * 8 for name, column in PAIRS.items()})
    bert().save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    told = ["name=tiny", "model=pretrained", f"model.path={tmp_path / 'model'}", "task=embeddings", f"task.path={path}"]
    told += ["task.columns=[first,second]", "task.label=alike", "train.cpu=true", "train.max_length=24", "job=search"]
    told += ["train.batch_size=4", "budget.ratio=0.2", "search.examples=16"]
    with hydra.initialize_config_module("nxmiformer.conf", version_base="1.3"):
        content = search(build(hydra.compose("config", told), tmp_path / "run"))
    assert -1 <= content["dense"] <= 1
    assert json.loads((tmp_path / "run" / "search.json").read_text())["best"]["score"] == content["best"]["score"]
