"""One text or two and a label: what a column says is understood alike however it is written, or asked for."""

import itertools
import logging

import datasets
import hydra
import numpy as np
import pytest
import tables
import torch
import transformers

from nxmiformer import cli
from nxmiformer.jobs import compress
from nxmiformer.tasks.label_column import understood
from nxmiformer.tasks.labelled import Reordered
from nxmiformer.tasks.outcomes import Classes, Labels, Number
from nxmiformer.tasks.text import Text
from nxmiformer.train.evaluate import Answers, looks

SETS = [["calm"], ["calm", "glad"], [], ["sad", "glad"]]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "datasets")
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def rows(labels, feature=None):
    data = datasets.Dataset.from_dict({"stars": labels})
    return data.cast_column("stars", feature) if feature is not None else data


def read(labels, kind=None, names=None, feature=None):
    """What a column is understood as, and its labels as numbers."""
    data = rows(labels, feature)
    labelling = understood(data, "stars", kind, names, "there")
    return labelling, np.asarray(labelling.read(data, "there")[0]).tolist()


NAMED = datasets.ClassLabel(names=["low", "mid", "high"])


@pytest.mark.parametrize(
    ("given", "labels", "numbers"),
    [
        ({"labels": [5, 1, 3, 1]}, ("1", "3", "5"), [2, 0, 1, 0]),
        ({"labels": [10, 9, -1]}, ("-1", "9", "10"), [2, 1, 0]),
        ({"labels": ["10", "9", "9"]}, ("9", "10"), [1, 0, 0]),
        ({"labels": ["no", "yes", "maybe"]}, ("maybe", "no", "yes"), [1, 2, 0]),
        ({"labels": [True, False]}, ("False", "True"), [1, 0]),
        ({"labels": [2, 0], "feature": NAMED}, ("low", "mid", "high"), [2, 0]),
        ({"labels": ["b", "a"], "names": ["b", "a", "c"]}, ("b", "a", "c"), [0, 1]),
        ({"labels": [0, 1], "names": ["bad", "good"]}, ("bad", "good"), [0, 1]),
        ({"labels": [1, 0], "names": ["1", "0"]}, ("1", "0"), [0, 1]),
        ({"labels": [2.0, 1.0], "kind": "classes"}, ("1", "2"), [1, 0]),
    ],
)
def test_classes_are_ordered_as_given_else_as_the_data_set_has_them_else_by_number_or_name(given, labels, numbers):
    labelling, found = read(**given)
    assert (labelling.outcome, labelling.labels, found) == (Classes(), labels, numbers)


@pytest.mark.parametrize("given", [[3, 1, 2], [10, 9, -1, 9], [0, 1]])
def test_numbers_as_classes_are_the_same_written_as_texts(given):
    assert read(given) == read([str(number) for number in given])


def test_a_list_names_the_labels_of_a_row_and_columns_of_0_and_1_say_the_same():
    labelling, found = read(SETS)
    assert (labelling.outcome, labelling.labels) == (Labels(), ("calm", "glad", "sad"))
    assert found == [[1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 1, 1]]
    columns = {name: [int(name in each) for each in SETS] for name in labelling.labels}
    wide = datasets.Dataset.from_dict(columns)
    other = understood(wide, list(columns), None, None, "there")
    assert (other.outcome, other.labels) == (Labels(), labelling.labels)
    assert other.read(wide, "there")[0] == found
    numbered = [[labelling.labels.index(name) for name in each] for each in SETS]
    feature = datasets.List(datasets.ClassLabel(names=list(labelling.labels)))
    assert read(numbered, feature=feature)[1] == found


def test_fractions_are_a_number_and_so_is_what_is_said_to_be_one():
    assert read([0.5, 2.0]) == (understood(rows([0.5]), "stars", None, None, "there"), [0.5, 2.0])
    labelling, found = read([1, 4], kind="number")
    assert (labelling.outcome, labelling.labels, found) == (Number(), (), [1.0, 4.0])


@pytest.mark.parametrize(
    ("labels", "options", "told"),
    [
        ([1, 1, 1], {}, "has the class '1' in every row: there is nothing to learn"),
        (
            [1.0, 2.0],
            {},
            r"whole numbers that are written as fractions, such as 1\.0.*task\.kind=classes or",
        ),
        (list(range(12)), {}, "has 12 different values in 12 rows.*task.kind=classes or task.kind=number"),
        ([str(i) for i in range(12)], {}, "has 12 different values in 12 rows, such as '0'.*task.kind=classes$"),
        ([1, None], {}, r"row 1 \(the first is 0\): None, but a label is expected"),
        (["a", " "], {}, r"row 1 .*: ' ', but a label is expected"),
        (["a", "b"], {"kind": "number"}, "row 0: 'a' is of type string, but a number is expected"),
        ([0.5, float("inf")], {"kind": "number"}, "row 1 .*: inf, but a finite number is expected"),
        ([0.5, 1.5], {"names": ["x", "y"]}, "holds numbers, which have no classes"),
        (["a", "b"], {"kind": "labels"}, "holds string, such as 'a': task.kind=labels takes lists"),
        ([["a"], ["b"]], {"kind": "classes"}, r"holds list<.*such as \['a'\]: task.kind=labels takes lists"),
        ([["a", "a"], ["b"]], {}, r"row 0 .*: \['a', 'a'\], but a list, each at most once, of a, b"),
        ([[], []], {}, "holds list<.*and no names or numbers"),
        ([["a"], ["b", None]], {}, r"row 1 .*: \['b', None\], but a label is expected"),
        ([{"a": 1}, {"a": 2}], {}, "holds struct<a: int64>.*and no names or numbers"),
        ([0, 1, 2], {"names": ["no", "yes"]}, "column 'stars' has 0, 1, 2 too: name all"),
        ([-1, 2], {"feature": NAMED}, r"row 0 .*: -1, but a label is expected.*-1 marks a row without a label"),
    ],
)
def test_a_column_that_could_be_several_things_or_none_is_told(labels, options, told):
    with pytest.raises(ValueError, match=f"^(task.labels.*)?there.*{told}"):
        read(labels, **options)


def test_a_class_that_the_training_rows_lack_is_refused_and_may_be_given():
    train, other = rows([0, 1, 0]), rows([1, 7])
    with pytest.raises(ValueError, match=r"^here.*row 1 .*: 7, but one of 0, 1 \(as in the training rows; task.labels"):
        understood(train, "stars", None, None, "there").read(other, "here")
    wider = understood(train, "stars", None, ["0", "1", "7"], "there")
    assert wider.read(other, "here")[0].tolist() == [1, 2]
    assert understood(train, "stars", None, ["0", "1"], "there").read(rows([1]), "here")[0].tolist() == [1]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"columns": []}, r"task.columns=\[\]: name one text column, or two"),
        ({"columns": ["a", "b", "c"]}, "name one text column, or two"),
        ({"label": []}, "name a label column, or several"),
        ({"label": "text"}, "none of them twice or a text"),
        ({"kind": "class"}, "unknown task.kind 'class': did you mean classes"),
        ({"label": ["a", "b"], "kind": "number"}, r"task.kind=number: several columns, task.label=\['a', 'b'\], are"),
        ({"labels": ["a"]}, r"task.labels=\['a'\]: at least two, none twice"),
        ({"labels": ["a", "a"]}, "at least two, none twice"),
        ({"labels": ["a", "b"], "kind": "number"}, "a number has none"),
        ({"labels": ["a", "b"], "label": ["a", "b"]}, "the columns name them"),
    ],
)
def test_fields_that_no_table_can_have_are_refused_before_it_is_read(options, told):
    with pytest.raises(ValueError, match=told):
        Text(path="nowhere.csv", **options)


def task(tmp_path, **options):
    """Four tasks of the same texts, one of each kind."""
    places = range(tables.ROWS)
    columns = {"first": tables.texts(), "second": tables.texts()[::-1]}
    columns |= {"stars": [i * 5 % 3 + 1 for i in places], "mood": [SETS[i % 4] for i in places]}
    columns |= {"points": [i / 7 for i in places], "label": ["unread"] * tables.ROWS}
    return Text(path=tables.write_jsonl(tmp_path / "rows.jsonl", columns), columns=["first", "second"], **options)


KINDS = {"classes": {"label": "stars"}, "labels": {"label": "mood"}, "number": {"label": "points"}}
each_kind = pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)


def encoded(made):
    """The validation rows, and a model of the task's configuration."""
    tokenizer = tables.tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.BertForSequenceClassification(tables.config(**made.configure())).eval()
    return model, made.encode(made.splits()["train"], tokenizer, 16, model.config)


@each_kind
def test_the_loss_of_the_units_is_the_models_own(options, tmp_path):
    made = task(tmp_path, **options)
    model, examples = encoded(made)
    batch = examples.batch(range(8), "cpu")
    with torch.no_grad():
        outputs = model(**batch)
    units = made.units(outputs, batch)
    loss = made.outcome.losses(units.logits, units.targets).mean()
    ours = 2 * loss if isinstance(made.outcome, Number) else loss  # the likelihood has half of the square
    torch.testing.assert_close(ours, outputs.loss, rtol=0, atol=1e-6)


@each_kind
def test_neither_batch_size_nor_padding_changes_an_answer_and_answers_are_in_the_order_of_rows(options, tmp_path):
    made = task(tmp_path, **options)
    model, examples = encoded(made)
    found = []
    for size in (1, 5, len(examples)):
        answers = Answers(made, examples)
        for look in looks(lambda inputs: model(**inputs), made, examples, size, "cpu"):
            answers.add(look)
        found.append(np.stack(answers.all))
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], atol=1e-6)
    alone = model(**made.inputs(examples.batch([3], "cpu"))).logits[0].detach().numpy()
    np.testing.assert_allclose(found[-1][3], alone, atol=1e-6)


@each_kind
def test_only_what_is_read_is_kept_and_the_metric_is_the_usual_one(options, tmp_path):
    made = task(tmp_path, **options)
    splits = made.splits()
    assert splits["train"].column_names == ["first", "second", options["label"]] == list(made.reads)
    expected = {"classes": "accuracy", "labels": "micro_f1", "number": "pearson"}
    assert made.metric == expected[next(name for name, each in KINDS.items() if each is options)]


def test_a_metric_is_taken_where_the_outcome_has_it_and_else_those_are_named(tmp_path):
    made = task(tmp_path, label="stars", metric="weighted_f1")
    assert list(made.score(np.eye(3), [0, 1, 2])) == ["weighted_f1", "accuracy", "macro_f1", "matthews"]
    for label, metric, told in (
        ("stars", "f1", "task.metric for 3 classes 'f1': did you mean micro_f1"),
        ("mood", "matthews", "task.metric for 3 labels at once 'matthews': "),
        ("points", "accuracy", "task.metric for a number 'accuracy': there are pearson, spearman, mean"),
    ):
        with pytest.raises(ValueError, match=f"unknown {told}"):
            task(tmp_path, label=label, metric=metric).splits()


@pytest.mark.parametrize("options", [KINDS["classes"], KINDS["labels"]], ids=["classes", "labels"])
def test_a_task_in_a_models_order_scores_the_same_and_says_the_same_of_each_row(options, tmp_path):
    made = task(tmp_path, **options)
    splits = made.splits()
    truths = made.targets_of(splits["train"]).tolist()
    logits = np.random.default_rng(0).normal(size=(len(truths), 3))
    for order in itertools.permutations(range(3)):
        other = made.in_order([made.labels[number].upper() for number in order])
        assert isinstance(other, Reordered) == (order != (0, 1, 2))
        renumbered = other.targets_of(other.splits()["train"]).tolist()
        assert other.score(logits[:, order], renumbered) == made.score(logits, truths)
        assert other.chance(renumbered) == made.chance(truths)
        assert other.outcome == made.outcome


def test_names_that_differ_in_a_sign_alone_keep_their_order(tmp_path):
    columns = {"text": tables.texts(4), "label": [-1, 1, 1, -1]}
    made = Text(path=tables.write_csv(tmp_path / "rows.csv", columns))
    assert made.in_order(["-1", "1"]) is made
    assert made.in_order(["1", "-1"]).order == (1, 0)


def test_a_run_of_labels_trains_packs_and_reloads_the_very_same(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(compress, "write_report", lambda _: None)  # whose figures take longer than all else
    caplog.set_level(logging.INFO, "nxmiformer")
    made = task(tmp_path, label="mood")
    words = [
        *("name=run", "task=text", f"task.path={made.path}", "task.columns=[first,second]"),
        *("task.label=mood", "task.share=0.2", "model=pretrained"),
        f"model.path={tables.checkpoint(tmp_path / 'model')}",
        *("dense_cache=null", "train.batch_size=4", "train.cpu=true", "train.max_length=16", "recipe=one_shot"),
        *("recipe.phases.dense.steps=2",),
    ]
    with hydra.initialize_config_module("nxmiformer.conf", version_base="1.3"):
        job = cli.build(hydra.compose("config", words), tmp_path / "run")
    content = compress.run(job)
    assert content["task"] | {"train": 15, "holdout": 5, "validation": 4} == content["task"]
    assert content["scores"]["packed"] == content["scores"]["final"]
    assert made.metric in content["scores"]["packed"]
    assert "there is no validation split; of the 19 training rows 4 become it" in caplog.text
