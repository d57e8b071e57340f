"""Tags of words: which token has them, how they are scored, and which rows are refused."""

import json
from collections import Counter

import datasets
import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval import metrics as seqeval
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn import functional as F
from whole import bert, packed_run, pieces

from nxmiformer.models.labels import class_names
from nxmiformer.tasks.tokens import Tagged, Tokens
from nxmiformer.train.evaluate import Answers, looks

NAMES = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
TEXTS = ["Ada met Bob in York", "York", "New York is far from Ada Lovelace", "Bob", "far far from York met Ada"]
WORDS = ["Ada", "met", "Bo", "##b", "in", "New", "York", "is", "far", "from", "Love", "##lace"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """What `datasets` makes of a file is written to the tests' own."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "datasets")
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def tag(word):
    return {"Ada": "B-PER", "Bob": "B-PER", "Lovelace": "I-PER", "New": "B-LOC", "York": "I-LOC"}.get(word, "O")


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def rows(count=24, **changes):
    texts = [TEXTS[number % len(TEXTS)].split() for number in range(count)]
    return [{"tokens": words, "ner_tags": [tag(word) for word in words], **changes} for words in texts]


def task(**options):
    return Tokens(path="nowhere.jsonl", labels=NAMES, **options)


def encoded(length=24, words=None, tags=None, tokenizer=None):
    words = words or [text.split() for text in TEXTS]
    tags = tags or [[NAMES.index(tag(word)) for word in text] for text in words]
    split = datasets.Dataset.from_dict({"tokens": words, "ner_tags": tags})
    return task().encode(split, tokenizer or pieces(WORDS), length, None)


def tagger():
    return bert(transformers.BertForTokenClassification, pieces(WORDS), num_labels=len(NAMES))


def test_the_first_token_of_each_word_has_its_tag_and_no_other_token_has_one():
    data = encoded(words=[["Bob", "Lovelace", "is"]], tags=[[1, 2, 0]])
    assert data.features[0]["labels"] == [-100, 1, -100, 2, -100, 0, -100]
    assert data.truths == [Tagged([1, 2, 0], [0, 1, 2])]


@pytest.mark.parametrize("size", [1, 2, 5])
def test_cross_entropy_over_the_units_is_the_models_own_loss_and_no_batch_changes_them(size):
    data, model, owner = encoded(), tagger(), task()
    batch = data.batch(range(len(data)), "cpu")
    whole = owner.units(model(**owner.inputs(batch)), batch)
    torch.testing.assert_close(F.cross_entropy(whole.logits, whole.targets), model(**batch).loss, rtol=0, atol=1e-6)
    answers = Answers(owner, data)
    for look in looks(lambda inputs: model(**inputs), owner, data, size, "cpu"):
        answers.add(look)
        for place, number in enumerate(look[0]):
            alone, within = (u.logits[u.owner == n] for u, n in ((look[2], place), (whole, number)))
            torch.testing.assert_close(alone, within, rtol=0, atol=1e-5)
    rights = [[NAMES[t] for t in truth.tags] for truth in data.truths]
    said = [[NAMES[t] for t in row] for row in answers.all]
    assert [len(row) for row in said] == [len(row) for row in rights]
    assert answers.score() == pytest.approx(
        {
            "precision": seqeval.precision_score(rights, said, zero_division=0),
            "recall": seqeval.recall_score(rights, said, zero_division=0),
            "f1": seqeval.f1_score(rights, said, zero_division=0),
            "accuracy": seqeval.accuracy_score(rights, said),
        }
    )


def entities(rows):
    """Of each row the entities, by first word, last word and kind; a slow twin of the CoNLL script."""
    found = set()
    for number, tags in enumerate(rows):
        for first in range(len(tags)):
            for last in range(first, len(tags)):
                kind = tags[first][2:]
                before = tags[first - 1] if first else "O"
                after = tags[last + 1] if last + 1 < len(tags) else "O"
                begins = tags[first] != "O" and (tags[first][0] == "B" or before[2:] != kind or before == "O")
                inside = all(each == f"I-{kind}" for each in tags[first + 1 : last + 1])
                if begins and inside and after != f"I-{kind}":
                    found.add((number, first, last, kind))
    return found


TAGS = st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=6), min_size=1, max_size=4)


@settings(max_examples=40, deadline=None)
@given(data=st.data(), right=TAGS)
def test_entities_score_as_by_a_count_of_them(data, right):
    said = [data.draw(st.lists(st.integers(0, 4), min_size=len(row), max_size=len(row))) for row in right]
    named = [[[NAMES[number] for number in row] for row in each] for each in (right, said)]
    ours, theirs = map(entities, named)
    hits = len(ours & theirs)
    precision, recall = (hits / len(each) if each else 0.0 for each in (theirs, ours))
    f1 = 2 * hits / (len(ours) + len(theirs)) if ours or theirs else 0.0
    pairs = [pair for row in zip(right, said, strict=True) for pair in zip(*row, strict=True)]
    truths = [Tagged(row, range(len(row))) for row in right]
    assert task().score(said, truths) == pytest.approx(
        {"precision": precision, "recall": recall, "f1": f1, "accuracy": np.mean([a == b for a, b in pairs])}
    )


def test_entities_of_bilou_score_as_those_of_iobes():
    right, said = [[0, 1, 2, 3, 4, 4]], [[0, 1, 2, 3, 0, 4]]
    truths = [Tagged(right[0], range(6))]
    scores = [
        Tokens(path="", labels=names).score(said, truths)
        for names in (["O", "B-X", "I-X", "E-X", "S-X"], ["O", "B-X", "I-X", "L-X", "U-X"])
    ]
    assert scores[0] == scores[1] == pytest.approx({"precision": 1, "recall": 2 / 3, "f1": 0.8, "accuracy": 5 / 6})


def test_other_tags_score_by_accuracy_and_by_the_f1_in_the_mean_over_them():
    parts = Tokens(path="", labels=["NOUN", "VERB", "DET", "X"])
    right, said = [0, 0, 1, 1, 2, 2, 0], [0, 1, 1, 1, 0, 2, 0]
    counted = [Counter(right), Counter(said), Counter(a for a, b in zip(right, said, strict=True) if a == b)]
    f1 = [2 * counted[2][tag] / (counted[0][tag] + counted[1][tag]) for tag in (0, 1, 2)]
    assert parts.metric == "accuracy"
    assert parts.score([said], [Tagged(right, range(7))]) == pytest.approx({"accuracy": 5 / 7, "macro_f1": np.mean(f1)})
    assert parts.chance([Tagged(right, range(7))]).score == 3 / 7
    assert (task().metric, task().chance([Tagged(right, range(7))]).score) == ("f1", 0.0)


def test_words_that_the_model_does_not_see_count_against_every_score():
    words, tags = [["Ada", "met", "Bob", "in", "York", "far"]], [[1, 0, 1, 0, 3, 0]]
    data = encoded(4, words, tags)
    assert (data.truths[0].seen, data.cut) == ([0, 1], 1)
    right = [tags[0][:2]]
    assert task().score(right, data.truths) == pytest.approx(
        {"precision": 1, "recall": 1 / 3, "f1": 0.5, "accuracy": 2 / 6}
    )
    parts = Tokens(path="", labels=["a", "b"])
    cut = [Tagged([0, 0, 1, 1], [0, 2])]
    assert parts.score([[0, 1]], cut) == pytest.approx({"accuracy": 0.5, "macro_f1": 2 / 3})


def test_a_word_without_a_token_moves_no_tag_to_another_word():
    data = encoded(words=[["Ada", " ", "Bob"]], tags=[[1, 0, 3]])
    assert data.truths[0].seen == [0, 2]
    assert [label for label in data.features[0]["labels"] if label != -100] == [1, 3]


@pytest.mark.parametrize("prefix", [False, True])
def test_words_have_the_tokens_that_they_have_in_a_text(prefix):
    core = Tokenizer(models.BPE({"<s>": 0, "a": 1, "b": 2, "Ġ": 3, "Ġa": 4, "Ġb": 5}, [("Ġ", "a"), ("Ġ", "b")]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<s>")
    data = encoded(words=[["a", "b", "a"]], tags=[[1, 2, 0]], tokenizer=tokenizer)
    assert data.features[0]["input_ids"] == tokenizer("a b a")["input_ids"] == [4 if prefix else 1, 5, 4]
    assert data.features[0]["labels"] == [1, 2, 0]


def test_a_tokenizer_that_cannot_tell_words_apart_is_refused():
    class Slow(transformers.PythonBackend):
        vocab_size = 1

        def get_vocab(self):
            return {"a": 0}

    with pytest.raises(ValueError, match="Slow does not say: give a model with a fast tokenizer"):
        encoded(tokenizer=Slow())


def test_thinned_units_are_refused_and_the_remedy_named():
    data, model = encoded(), tagger()
    batch = data.batch([0, 2], "cpu")
    units = task().units(model(**task().inputs(batch)), batch)
    with pytest.raises(ValueError, match=r"of 12 words there are 3 units: lower search\.examples"):
        task().answers(units.thinned(3), batch)


@given(order=st.permutations(range(5)), seed=st.integers(0, 9))
@settings(max_examples=4, deadline=None)
def test_a_model_that_numbers_the_tags_otherwise_gets_the_same_scores(order, seed, tmp_path_factory):
    path = write(tmp_path_factory.mktemp("order") / "rows.jsonl", rows())
    plain = Tokens(path=path, labels=NAMES)
    other = plain.in_order([NAMES[number].lower() for number in order])
    assert other.labels == tuple(NAMES[number] for number in order)
    draw = np.random.default_rng(seed)
    for one, two in zip(plain.splits()["holdout"], other.splits()["holdout"], strict=True):
        assert [plain.labels[tag] for tag in one["ner_tags"]] == [other.labels[tag] for tag in two["ner_tags"]]
        seen, said = range(len(one["ner_tags"])), draw.integers(5, size=len(one["ner_tags"]))
        renumbered = np.argsort(order)[said].tolist()
        truths = [[Tagged(row["ner_tags"], seen)] for row in (one, two)]
        assert plain.score([said.tolist()], truths[0]) == other.score([renumbered], truths[1])
    assert plain.in_order(NAMES) is plain
    assert plain.in_order(["LABEL_0", "LABEL_1"]) is plain


def test_tags_that_signs_alone_tell_apart_are_put_in_order_by_their_very_names():
    parts = Tokens(path="", labels=["NN", ".", ",", "PRP", "PRP$"])
    other = ["PRP$", ",", "NN", ".", "PRP"]
    assert parts.in_order(other).labels == tuple(other)
    assert class_names(other, parts, True, None, "there") == other
    with pytest.raises(ValueError, match=r"it calls its classes \['PRP', 'NN', ':', '-', 'DT'\]"):
        class_names(["PRP", "NN", ":", "-", "DT"], parts, True, None, "there")


def test_the_names_are_those_of_the_column_else_those_that_the_training_rows_have(tmp_path):
    named = Tokens(path=write(tmp_path / "names.jsonl", rows()))
    assert named.labels == ("B-LOC", "B-PER", "I-LOC", "I-PER", "O") == Tokens(path=named.path, train_examples=1).labels
    numbers = [{**row, "ner_tags": [NAMES.index(each) for each in row["ner_tags"]]} for row in rows()]
    features = {"tokens": datasets.List(datasets.Value("string"))}
    features["ner_tags"] = datasets.List(datasets.ClassLabel(names=NAMES))
    (tmp_path / "data").mkdir()
    data = datasets.Dataset.from_list(numbers, features=datasets.Features(features))
    data.to_parquet(tmp_path / "data" / "train.parquet")
    column = Tokens(path=str(tmp_path / "data"))
    told = Tokens(path=write(tmp_path / "numbers.jsonl", numbers), labels=NAMES)
    assert column.labels == told.labels == tuple(NAMES)
    splits = [each.splits()["holdout"]["ner_tags"][:] for each in (column, told)]
    assert splits[0] == splits[1]
    with pytest.raises(ValueError, match=r"column 'ner_tags' has numbers, such as .*task\.labels=\[O,B-PER"):
        print(Tokens(path=told.path).labels)


WRONG = {
    "no such column": (
        {"path": "x"},
        {"tags": "pos"},
        r"task\.tags=pos: .* has no such column; it has \['tokens', 'ner_",
    ),
    "text for words": ({"tokens": "Ada met Bob"}, {}, r"column 'tokens' holds string, such as 'Ada met Bob'"),
    "a missing tag": ({"ner_tags": ["O", None, "O"]}, {}, r"row 0 \(the first is 0\), column 'ner_tags': \['O', None"),
    "more words": (
        {"ner_tags": ["O", "O"]},
        {},
        r"row 0 .* has 5 in 'tokens' and 2 in 'ner_tags': a tag for each word",
    ),
    "unknown tag": ({"ner_tags": ["O", "B-ORG", "O", "O", "O"]}, {}, r"row 0 .*'B-ORG', but one of O, B-PER, I-PER"),
    "no number": ({"ner_tags": [0, 0, 7, 0, 0]}, {}, r"7, but one of 0 \(O\), 1 \(B-PER\)"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_row_that_is_not_words_with_a_tag_each_is_named(name, tmp_path):
    change, options, message = WRONG[name]
    path = write(tmp_path / "rows.jsonl", rows(1, **change))
    with pytest.raises(ValueError, match=message):
        Tokens(path=path, labels=NAMES, **options).splits()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"words": "ner_tags"}, "they are two columns"),
        ({"labels": ["O", "O"]}, r"task\.labels=\['O', 'O'\]: at least two, none twice"),
        ({"share": 1.0}, r"the holdout needs a share in \(0, 1\)"),
    ],
)
def test_an_impossible_value_is_refused_when_the_task_is_made(options, message):
    with pytest.raises(ValueError, match=message):
        Tokens(path="nowhere.jsonl", **options)


def test_a_whole_run_packs_a_tagger_that_reloads_with_equal_bits(tmp_path):
    path = write(tmp_path / "rows.jsonl", rows())
    tokenizer = pieces(WORDS)
    content, packed, place = packed_run(tmp_path, tagger(), tokenizer, "task=tokens", f"task.path={path}")
    assert content["task"]["metric"] == "f1"
    assert content["scores"]["packed"].keys() == {"precision", "recall", "f1", "accuracy"}
    assert sorted(packed.config.label2id) == sorted(NAMES)
    again = transformers.AutoModelForTokenClassification.from_pretrained(place)
    inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
    assert torch.equal(packed(**inputs).logits, again(**inputs).logits)
