"""What a user's data may hold: anything else is refused by split, row and value, and nothing is cast."""

import datasets
import pytest
from glue_tasks import glue

HAS = r"one of 0 \(unacceptable\), 1 \(acceptable\) .* is expected"


def rows(labels, feature=None, **columns):
    columns = columns or {"sentence": ["a"] * len(labels)}
    data = datasets.Dataset.from_dict({**columns, "label": labels})
    return data.cast_column("label", feature) if feature is not None else data


def pairs(labels):
    return rows(labels, sentence1=["a"] * len(labels), sentence2=["b"] * len(labels))


@pytest.fixture
def read(monkeypatch):
    """The splits of a task whose data set holds these."""

    def call(name, **splits):
        monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.DatasetDict(splits))
        return glue(name, path="mine", share=0.25).splits()

    return call


GOOD = {"cola": rows([0, 1, 0, 1]), "stsb": pairs([0.0, 5.0, 2.5, 1.0])}


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ([0, 1, -1, -1], rf"row 2 \(the first is 0\): -1, but {HAS}; so in 2 of 4 rows\. -1 marks a row"),
        ([0, 2], rf"row 1 .*: 2, but {HAS}; so in 1 of 2 rows$"),
        ([0, None], r"row 1 .*: None, but a label is expected"),
        ([0.5, 1.0], rf"row 0 .*: 0\.5, but {HAS}"),
        ([False, True], rf"row 0 .*: False, but {HAS}"),
        (["acceptable", "1"], rf"row 0 .*: 'acceptable', but {HAS}"),
    ],
)
def test_a_label_that_is_no_class_is_refused_with_its_row_and_value(labels, told, read):
    with pytest.raises(ValueError, match=f"the validation split, column 'label', {told}"):
        read("cola", train=GOOD["cola"], validation=rows(labels))


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ([0, 1, -1, -1], r"row 2 \(the first is 0\): -1, but one of unacceptable, acceptable .*-1 marks a row"),
        ([0, 2, 1, 1], r"has 0, 1, 2 too: name all"),
        (["Acceptable", "unacceptable", "acceptable"], r"has Acceptable too: name all"),
        ([0, None, 1], r"row 1 .*: None, but a label is expected"),
    ],
)
def test_so_is_one_of_the_training_rows(labels, told, read):
    with pytest.raises(ValueError, match=f"the training split, column 'label'.*{told}"):
        read("cola", train=rows(labels), validation=GOOD["cola"])


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ([2.5, -1.0], r"row 1 .*: -1\.0, but a number from 0 to 5 is expected.*without a label"),
        ([2.5, 5.5], r"row 1 .*: 5\.5"),
        ([2.5, float("inf")], "row 1 .*: inf, but a finite number from 0 to 5 is expected"),
        ([2.5, float("nan")], "row 1 .*: nan"),
        ([2.5, None], "row 1 .*: None"),
        (["2.5"], "row 0: '2.5' is of type string"),
    ],
)
def test_a_target_that_is_no_number_of_the_task_is_refused_with_its_row_and_value(labels, told, read):
    with pytest.raises(ValueError, match=f"the validation split, column 'label', {told}"):
        read("stsb", train=GOOD["stsb"], validation=pairs(labels))


@pytest.mark.parametrize("labels", [[0, 1], ["unacceptable", "acceptable"]])
@pytest.mark.parametrize("feature", [None, datasets.ClassLabel(names=["0", "1"])])
def test_labels_are_the_tasks_by_number_and_by_name(labels, feature, read):
    given = rows(labels, feature if isinstance(labels[0], int) else None)
    found = read("cola", train=datasets.concatenate_datasets([given] * 2), validation=given)["validation"]
    assert found["label"][:] == [0, 1]
    assert found.features["label"].names == ["unacceptable", "acceptable"]


def test_labels_that_are_numbered_in_another_order_are_taken_by_their_names(read):
    given = rows([0, 1, 0], datasets.ClassLabel(names=["acceptable", "unacceptable"]))
    found = read("cola", train=given, validation=given)["validation"]
    assert found["label"][:] == [1, 0, 1]
    assert found.features["label"].names == ["unacceptable", "acceptable"]


def test_whole_numbers_are_targets_too(read):
    found = read("stsb", train=pairs([0, 5, 3, 1]), validation=pairs([0, 5]))["validation"]
    assert found["label"][:] == [0.0, 5.0]


def test_names_that_are_not_the_tasks_are_refused(read):
    given = rows([0, 1], datasets.ClassLabel(names=["spam", "ham"]))
    with pytest.raises(ValueError, match=r"has ham, spam too: name all"):
        read("cola", train=given, validation=given)


@pytest.mark.parametrize(
    ("texts", "told"),
    [
        (["a", None], r"column 'sentence', row 1 \(the first is 0\): None, but a text is expected; so in 1 of 2 rows"),
        ([None, None], "column 'sentence', row 0 .*; so in 2 of 2 rows"),
        ([1, 2], "column 'sentence' holds int64, such as 1, not texts"),
    ],
)
def test_a_text_that_is_none_is_refused_with_its_row(texts, told, read):
    with pytest.raises(ValueError, match=told):
        read("cola", train=GOOD["cola"], validation=rows([0, 1], sentence=texts))


def test_a_column_that_is_missing_is_told_with_those_that_are_there(read):
    with pytest.raises(ValueError, match=r"has no column \['sentence'\]; it has \['text', 'label'\]"):
        read("cola", train=rows([0, 1], text=["a", "b"]), validation=GOOD["cola"])


@pytest.mark.parametrize("span", ["[5,0]", "[1]", "[1,2,3]"])
def test_a_span_that_is_none_is_refused(span):
    with pytest.raises(ValueError, match="the least and the largest number"):
        glue("stsb", span=span)


def test_every_split_is_checked_and_one_that_is_missing_is_told_with_those_that_are_there(read):
    good = GOOD["cola"]
    assert len(read("cola", train=good, validation=good)["validation"]) == 4
    with pytest.raises(ValueError, match=r"mine, mnli: there is no split 'validation_matched'; there are \['train'\]"):
        read("mnli", train=rows([0, 1, 2], premise=list("abc"), hypothesis=list("def")))
    with pytest.raises(ValueError, match=r"mine, cola: the validation split, column 'label', row 0 .*: -1"):
        read("cola", train=good, validation=rows([-1, -1]))
    with pytest.raises(ValueError, match=r"mine, cola: the training split, column 'label', row 1 .*: -1"):
        read("cola", train=rows([0, -1, 1]), validation=good)
