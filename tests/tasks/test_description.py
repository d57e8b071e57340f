"""What was understood of the data is told in a few short lines, whatever the kind of task."""

import datasets
import pytest
import tables

from nxmiformer.tasks.batches import Examples
from nxmiformer.tasks.description import WIDTH, described_data
from nxmiformer.tasks.grammar import Grammar

MOST = 8  # lines


def told(task, *splits, texts=None, windows=1):
    """What is said of a task with these truths in its splits."""
    tokenizer, rows, data = tables.tokenizer(), datasets.DatasetDict(), {}
    for name, truths in zip(("train", "holdout", "validation"), splits, strict=False):
        given = texts or tables.texts(len(truths))
        rows[name] = datasets.Dataset.from_dict({"text": given, "label": truths})
        features = [{"input_ids": row} for row in tokenizer(given)["input_ids"]] * windows
        data[name] = Examples(features, {"input_ids": 0}, truths=[*truths] * windows)
    return described_data(task, rows, data, tokenizer)


def labelled(*names, columns=("text",)):
    """As much of a task as is described."""
    made = object.__new__(Grammar)
    vars(made).update(name="made", labels=names, columns=columns, metric="accuracy")
    return made


def test_sizes_columns_classes_lengths_and_an_example_are_told():
    assert told(labelled("no", "yes"), [1, 0, 1, 1], [0, 1], [1]) == [
        "made: 4 train, 2 holdout, 1 validation; columns text, label; score: accuracy",
        "2 classes, no: 1, yes: 3",
        "tokens: median 5, longest 7",
        "an example: [CLS] the the [SEP] -> yes",
    ]


def test_several_labels_are_counted_each_for_itself_and_named_in_the_example():
    lines = told(labelled("calm", "glad", "sad"), [[1, 0, 1], [0, 0, 0], [1, 0, 0]])
    assert lines[1] == "3 labels, calm: 2, glad: 0, sad: 1; 1 rows with none"
    assert lines[-1].endswith("-> calm, sad")


def test_numbers_are_told_by_their_range_and_anything_else_by_its_example_alone():
    assert told(labelled(), [0.5, 4.0, 2.0])[1] == "a number from 0.5 to 4, median 2"
    lines = told(labelled(), [{"text": ["new"]}, {"text": []}])
    assert [line.partition(":")[0] for line in lines] == ["made", "tokens", "an example"]
    assert lines[-1].endswith("-> {'text': ['new']}")


def test_tags_are_counted_over_all_words_and_named_in_the_example():
    lines = told(labelled("O", "B", "I"), [[0, 2], [1], [0]])
    assert lines[1] == "3 tags, O: 2, B: 1, I: 1"
    assert lines[-1].endswith("-> O I")


def test_windows_are_counted_beside_the_rows():
    lines = told(labelled("no", "yes"), [1, 0], windows=3)
    assert lines[0].startswith("made: 2 train")
    assert lines[2].endswith("; 6 windows in train")


@pytest.mark.parametrize("truths", [list(range(300)), [[0, 1] * 150], [{"text": "old " * 200}]])
def test_however_many_classes_and_however_long_the_texts_it_stays_a_few_lines(truths):
    names = [f"class number {number}" for number in range(300)]
    lines = told(labelled(*names), truths, texts=["very old book " * 90] * len(truths))
    assert len(lines) <= MOST
    assert max(map(len, lines)) <= WIDTH


def test_an_example_without_a_label_has_no_answer():
    assert " -> " not in told(labelled(columns=("text", "label")), [None, None])[-1]
