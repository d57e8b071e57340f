"""What a user's data may hold: anything else is refused by split, row and value, and nothing is cast."""

import logging

import datasets
import pytest

from nxmiformer.tasks.glue import Glue
from nxmiformer.tasks.rows import checked

COLA, STSB = Glue("cola"), Glue("stsb")
HAS = r"0 \(unacceptable\), 1 \(acceptable\) is expected"


def rows(labels, feature=None, **columns):
    columns = columns or {"sentence": ["a"] * len(labels)}
    data = datasets.Dataset.from_dict({**columns, "label": labels})
    return data.cast_column("label", feature) if feature is not None else data


def pairs(labels):
    return rows(labels, sentence1=["a"] * len(labels), sentence2=["b"] * len(labels))


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ([0, 1, -1, -1], rf"row 2 \(the first is 0\): -1, but {HAS}; so in 2 of 4 rows\. -1 marks a row"),
        ([0, 2], rf"row 1 .*: 2, but {HAS}; so in 1 of 2 rows$"),
        ([0, None], rf"row 1 .*: None, but {HAS}"),
        ([0.0, 1.0], r"row 0: 0\.0 is of type double"),
        ([False, True], r"row 0: False is of type bool"),
        (["acceptable", "1"], rf"row 1 .*: '1', but {HAS}"),
        ([], "has no rows"),
    ],
)
def test_a_label_that_is_no_class_is_refused_with_its_row_and_value(labels, told):
    with pytest.raises(ValueError, match=f"^there.*{told}"):
        checked(rows(labels), COLA, "there")


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ([2.5, -1.0], r"row 1 .*: -1\.0, but a number from 0 to 5 is expected.*without a label"),
        ([2.5, 5.5], r"row 1 .*: 5\.5"),
        ([2.5, float("inf")], "row 1 .*: inf"),
        ([2.5, float("nan")], "row 1 .*: nan"),
        ([2.5, None], "row 1 .*: None"),
        (["2.5"], "row 0: '2.5' is of type string"),
    ],
)
def test_a_target_that_is_no_number_of_the_task_is_refused_with_its_row_and_value(labels, told):
    with pytest.raises(ValueError, match=f"^there.*{told}"):
        checked(pairs(labels), STSB, "there")


def test_labels_that_are_the_tasks_pass_untouched():
    for given, task in ((rows([0, 1]), COLA), (pairs([0.0, 5.0]), STSB), (pairs([0, 5]), STSB)):
        assert checked(given, task, "there") is given
    numbered = rows([0, 1], datasets.ClassLabel(names=["0", "1"]))
    assert checked(numbered, COLA, "there") is numbered


@pytest.mark.parametrize(
    "given",
    [
        rows(["Acceptable", "un-acceptable", "acceptable"]),
        rows([0, 1, 0], datasets.ClassLabel(names=["acceptable", "unacceptable"])),
    ],
)
def test_labels_are_taken_by_their_names_which_is_told(given, caplog):
    caplog.set_level(logging.INFO, "nxmiformer")
    found = checked(given, COLA, "there")
    assert found["label"][:] == [1, 0, 1]
    assert found.features["label"].names == list(COLA.labels)
    assert "0 (unacceptable), 1 (acceptable)" in caplog.text


def test_names_that_are_not_the_tasks_are_refused():
    with pytest.raises(ValueError, match=r"names its labels \['spam', 'ham'\], and cola has 0 \(unacceptable\)"):
        checked(rows([0, 1], datasets.ClassLabel(names=["spam", "ham"])), COLA, "there")


@pytest.mark.parametrize(
    ("texts", "told"),
    [
        (["a", None], r"column 'sentence', row 1 \(the first is 0\): None, but a text is expected; so in 1 of 2 rows"),
        ([None, None], "column 'sentence', row 0 .*; so in 2 of 2 rows"),
        ([1, 2], "column 'sentence' holds int64, such as 1, not texts"),
    ],
)
def test_a_text_that_is_none_is_refused_with_its_row(texts, told):
    with pytest.raises(ValueError, match=told):
        checked(rows([0, 1], sentence=texts), COLA, "there")


def test_a_column_that_is_missing_is_told_with_those_that_are_there():
    with pytest.raises(ValueError, match=r"there has no column \['sentence'\]; it has \['text', 'label'\]"):
        checked(rows([0, 1], text=["a", "b"]), COLA, "there")


def test_every_split_is_checked_and_one_that_is_missing_is_told_with_those_that_are_there(monkeypatch):
    def read(**splits):
        found = datasets.DatasetDict(splits)
        monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: found)
        return Glue("cola", path="mine").splits()

    good = rows([0, 1, 0, 1])
    assert {name: len(part) for name, part in read(train=good, validation=good).items()}["validation"] == 4
    with pytest.raises(ValueError, match=r"mine, cola: there is no split 'validation'; there are \['train'\]"):
        read(train=good)
    with pytest.raises(ValueError, match=r"mine, cola: the validation split, column 'label', row 0 .*: -1"):
        read(train=good, validation=rows([-1, -1]))
    with pytest.raises(ValueError, match=r"mine, cola: the training split, column 'label', row 1 .*: -1"):
        read(train=rows([0, -1]), validation=good)
    with pytest.raises(ValueError, match="the training split has 1 row"):
        read(train=rows([0]), validation=good)
