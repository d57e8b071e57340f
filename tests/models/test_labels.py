"""A classifier keeps the names of its classes and their order, and the task follows."""

import logging

import datasets
import numpy as np
import pytest
import torch
import transformers
from glue_tasks import TASKS, glue
from hypothesis import given
from hypothesis import strategies as st

from nxmiformer.models.labels import class_names, classes_of
from nxmiformer.models.source import Pretrained
from nxmiformer.tasks.labelled import Reordered

SST2 = glue("sst2")


def names_of(own, loaded=True, asked=None, task=SST2):
    return class_names(own, task, loaded, asked, "there")


def test_names_of_another_case_and_order_are_the_checkpoints_own(caplog):
    caplog.set_level(logging.INFO, "nxmiformer")
    assert names_of(["POSITIVE", "NEGATIVE"]) == ["POSITIVE", "NEGATIVE"]
    assert "its labels are POSITIVE, NEGATIVE, in this order, and stay so" in caplog.text
    assert names_of(["not-Entailment", "entailment"], task=glue("rte")) == ["not-Entailment", "entailment"]


@pytest.mark.parametrize("own", [["LABEL_0", "LABEL_1"], ["0", "1"]])
def test_names_that_nobody_gave_are_the_tasks_and_that_is_told(own, caplog):
    caplog.set_level(logging.INFO, "nxmiformer")
    assert names_of(own) == ["negative", "positive"]
    assert "it does not name its labels; they are taken to be negative, positive" in caplog.text


def test_other_names_are_refused_unless_the_head_is_new_or_the_user_tells_the_order():
    with pytest.raises(ValueError, match=r"calls its classes \['spam', 'ham'\], and sst2 has .*model\.labels=\["):
        names_of(["spam", "ham"])
    assert names_of(["spam", "ham"], loaded=False) == ["negative", "positive"]
    assert names_of(["spam", "ham"], asked=["positive", "negative"]) == ["positive", "negative"]
    with pytest.raises(ValueError, match=r"model\.labels=\['good', 'bad'\]: the classes of sst2 are"):
        names_of(["spam", "ham"], asked=["good", "bad"])


def test_a_classifier_of_a_number_of_its_own_keeps_its_config_through_the_source(tmp_path):
    names = {0: "positive", 1: "negative"}
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, id2label=names
    )
    saved = transformers.BertForSequenceClassification(config)
    saved.save_pretrained(tmp_path)
    model = Pretrained(str(tmp_path)).model(SST2, None, 0)
    assert model.config.id2label == names
    assert model.config.label2id == {"positive": 0, "negative": 1}
    assert torch.equal(model.classifier.weight, saved.classifier.weight)
    assert SST2.in_order(classes_of(model.config)).labels == ("positive", "negative")


@given(data=st.data(), name=st.sampled_from([name for name, values in TASKS.items() if "labels" in values]))
def test_a_task_in_another_order_gives_the_same_scores_and_chance(data, name):
    task = glue(name)
    order = data.draw(st.permutations(range(task.outputs)))
    other = task.in_order([task.labels[number].upper() for number in order])
    draw = np.random.default_rng(data.draw(st.integers(0, 99)))
    logits, labels = draw.normal(size=(30, task.outputs)), draw.integers(task.outputs, size=30)
    renumbered = np.argsort(order)[labels]
    assert other.score(logits[:, order], renumbered) == task.score(logits, labels)
    assert other.chance(renumbered) == task.chance(labels)
    assert [other.labels[number] for number in renumbered] == [task.labels[number] for number in labels]


@pytest.mark.parametrize("names", [["negative", "positive"], ["a", "b"], ["LABEL_0"]])
def test_a_task_stays_itself_where_the_order_is_its_own_or_the_names_are_not(names):
    assert SST2.in_order(names) is SST2


def test_the_rows_of_a_task_in_another_order_are_renumbered_by_name(monkeypatch):
    rows = datasets.Dataset.from_dict({"sentence": list("abcd"), "label": [0, 1, 1, 0]})
    splits = dict.fromkeys(("train", "validation"), rows)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.DatasetDict(splits))
    splits = Reordered(glue("sst2", path="mine", share=0.25), (1, 0)).splits()
    assert splits["validation"]["label"][:] == [1, 0, 0, 1]
    rows = datasets.concatenate_datasets([splits["train"], splits["holdout"]])
    kept = dict(zip(rows["sentence"], rows["label"], strict=True))
    assert kept == dict(zip("abcd", [1, 0, 0, 1], strict=True))
    assert splits["train"].features["label"].names == ["positive", "negative"]
