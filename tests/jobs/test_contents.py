"""What a run reads is told by its content, not by where it is."""

import datasets
import pytest
import tokenizers
import torch
import transformers

from nxmiformer.jobs.digests import contents
from nxmiformer.models.source import Embedded, Pretrained
from nxmiformer.tasks.grammar import Grammar

TASK = Grammar(train=12, holdout=12, validation=12)
SOURCE = Embedded(hidden=16, layers=1, heads=2, intermediate=16)
TOKENIZER = SOURCE.tokenizer(TASK)


def model(seed=0):
    return SOURCE.model(TASK, TOKENIZER, seed)


def told(model, tokenizer=TOKENIZER, splits=None):
    return contents(model, tokenizer, TASK, splits or TASK.splits())


def test_a_copy_elsewhere_is_the_same_and_another_under_the_same_path_is_not(tmp_path):
    def read():
        source = Pretrained(str(tmp_path / "model"))
        tokenizer = source.tokenizer(TASK)
        return told(source.model(TASK, tokenizer, 0), tokenizer)

    for place, seed in (("model", 0), ("other", 0), ("third", 1)):
        model(seed).save_pretrained(tmp_path / place)
        TOKENIZER.save_pretrained(tmp_path / place)
    first = read()
    for place, same in (("other", True), ("third", False)):
        (tmp_path / "model").rename(tmp_path / f"before {place}")
        (tmp_path / place).rename(tmp_path / "model")
        found = read()
        assert (found["weights"] == first["weights"]) == same
        assert {**found, "weights": None} == {**first, "weights": None}


@torch.no_grad()
def one_weight(model):
    model.classifier.bias[0] += 1e-6


def another_support(model):
    layer = model.bert.encoder.layer[0].intermediate.dense
    layer.register_buffer("support", torch.ones_like(layer.weight, dtype=torch.bool), persistent=False)


def dropping(model):
    model.dropout.p = 0.5


def another_activation(model):
    model.config.hidden_act = "relu"


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (one_weight, "weights"),
        (another_support, "weights"),
        (dropping, "architecture"),
        (another_activation, "architecture"),
    ],
)
def test_one_changed_weight_is_told_and_so_is_what_computes_with_it(change, part):
    changed = model()
    change(changed)
    before, after = told(model()), told(changed)
    assert {name for name in before if before[name] != after[name]} == {part}


def test_one_changed_row_is_told_by_its_split_and_a_changed_word_by_the_tokenizer():
    splits = TASK.splits()
    rows = splits["train"].to_list()
    rows[3]["label"] = 1 - rows[3]["label"]
    changed = datasets.DatasetDict({**splits, "train": datasets.Dataset.from_list(rows)})
    before, after = told(model()), told(model(), splits=changed)
    assert {name for name in before if before[name] != after[name]} == {"train"}
    words = TOKENIZER.backend_tokenizer.to_str().replace(f'"{TASK.vocabulary[0]}"', '"something"')
    other = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer.from_str(words))
    assert told(model(), other)["tokenizer"] != before["tokenizer"]


def test_another_teacher_is_told_by_its_weights_and_none_leaves_nothing():
    teachers = [model(seed) for seed in (0, 0, 1)]
    first, same, other = (contents(model(), TOKENIZER, TASK, TASK.splits(), teacher) for teacher in teachers)
    assert first == same
    assert {key for key in first if first[key] != other[key]} == {"teacher"}
    assert {key: first[key] for key in first if key != "teacher"} == told(model())
