"""Answers in a text: windows, spans, and the scores of SQuAD's scripts."""

import collections
import itertools
import json
import re
import string

import datasets
import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from whole import bert, packed_run, pieces

from nxmiformer.tasks.answers import Answers
from nxmiformer.tasks.spans import Spans, Window, answered, best_spans
from nxmiformer.train import evaluate

CONTEXTS = [
    "Ada met Bob in York",
    "the old town is far from New York and from the sea",
    "Bob wrote a letter to Ada in York in the old town far from the sea",
]
ASKED = [(0, "who met Bob", "Ada"), (0, "where", "York"), (1, "what is far", "the old town"), (2, "who wrote", "Bob")]
ASKED += [(1, "far from what", "the sea"), (2, "what", "a letter"), (2, "where", "the old town")]
WORDS = sorted(
    {word for text in [*CONTEXTS, *(asked[1] for asked in ASKED)] for word in text.split()} - {"wrote", "Bob"}
)
WORDS += ["wro", "##te", "Bo", "##b"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """What `datasets` makes of a file is written to the tests' own."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "datasets")
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def row(number, question, *texts):
    context = CONTEXTS[number]
    return {
        "question": question,
        "context": context,
        "answers": {"text": list(texts), "answer_start": [context.index(text) for text in texts]},
    }


ROWS = [row(*asked) for asked in ASKED]


def write(path, rows):
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return str(path)


def task(**options):
    return Answers(**{"path": "nowhere.jsonl", "stride": 2, **options})


def encoded(length=14, rows=ROWS, **options):
    return task(**options).encode(datasets.Dataset.from_list(rows), pieces(WORDS), length, None)


def reader():
    return bert(transformers.BertForQuestionAnswering, pieces(WORDS))


# Windows.


def test_windows_cover_the_context_with_the_stride_in_common_and_know_where_the_answer_is():
    data = encoded()
    seen, found = collections.defaultdict(list), collections.Counter()
    for number, truth in enumerate(data.truths):
        places = [place for place in truth.places if place is not None]
        seen[truth.question].append(places)
        first, last = (int(data.whole[name][number]) for name in Answers.targets)
        if first:
            text = truth.context[truth.places[first][0] : truth.places[last][1]]
            assert text == truth.golds[0]
            found[truth.question] += 1
        else:
            assert last == 0
            whole = truth.context[places[0][0] : places[-1][1]]
            assert truth.golds[0] not in whole or truth.context.index(truth.golds[0]) != truth.context.index(whole)
        assert data.features[number]["open"] == [int(p is not None or n == 0) for n, p in enumerate(truth.places)]
        assert len(data.features[number]["input_ids"]) <= 14
    assert all(found[question] for question in range(len(ROWS)))
    for question, windows in seen.items():
        assert windows[0][0][0] == 0
        assert windows[-1][-1][1] == len(ROWS[question]["context"])
        assert all(one[-2:] == two[:2] for one, two in itertools.pairwise(windows))
    assert len(seen[6]) > len(seen[0]) == 1


def test_a_question_without_an_answer_points_at_the_first_token():
    data = encoded(rows=[row(0, "where"), row(0, "where", "York")], unanswerable=True)
    assert [data.whole[name].tolist() for name in Answers.targets] == [[0, 8], [0, 8]]
    assert [truth.golds for truth in data.truths] == [(), ("York",)]


def test_the_first_of_several_answers_is_the_target_and_all_are_truths():
    data = encoded(rows=[row(0, "where", "York", "in York")])
    assert (int(data.whole["start_positions"][0]), data.truths[0].golds) == (8, ("York", "in York"))


def test_a_question_that_leaves_no_room_is_named_and_one_beside_a_short_context_is_not():
    rows = [row(0, "who met Bob"), row(2, "who wrote " * 4)]
    with pytest.raises(
        ValueError, match=r"row 1 .*: its question has 12 tokens, 'who wrote .*train\.max_length=16 .*leaves 1 "
    ):
        encoded(16, rows, unanswerable=True)
    assert len(encoded(28, rows[:1], unanswerable=True, stride=24)) == 1
    with pytest.raises(ValueError, match=r"task\.stride=25: train\.max_length=28 has positions for 25 tokens"):
        encoded(28, rows[:1], stride=25)


def test_places_in_the_text_are_no_part_of_a_batch_and_the_model_is_given_inputs_alone():
    batch = encoded().batch([0, 1], "cpu")
    assert batch.keys() == {"input_ids", "token_type_ids", "attention_mask", "open", "start_positions", "end_positions"}
    assert task().inputs(batch).keys() == {"input_ids", "token_type_ids", "attention_mask"}
    assert task().told(batch).keys() == batch.keys() - {"open"}


def test_a_tokenizer_that_cannot_tell_places_is_refused():
    class Slow(transformers.PythonBackend):
        vocab_size = 1

        def get_vocab(self):
            return {"a": 0}

    with pytest.raises(ValueError, match="Slow does not say: give a model with a fast tokenizer"):
        task().encode(datasets.Dataset.from_list(ROWS), Slow(), 14, None)


# Units.


def test_cross_entropy_over_the_units_is_the_models_own_loss_where_closed_places_have_no_part_in_it():
    data, model, owner = encoded(), reader(), task()
    batch = data.batch(range(len(data)), "cpu")
    units = owner.units(model(**owner.inputs(batch)), batch)
    closed = (batch["open"] == 0)[..., None]
    model.qa_outputs.register_forward_hook(lambda _, __, logits: logits.masked_fill(closed, -1e30))
    own = model(**owner.told(batch)).loss
    torch.testing.assert_close(F.cross_entropy(units.logits, units.targets), own, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [1, 3, 20])
def test_neither_padding_nor_the_size_of_a_batch_changes_a_unit_or_a_score(size):
    data, model, owner = encoded(), reader(), task()
    batch = data.batch(range(len(data)), "cpu")
    whole = owner.units(model(**owner.inputs(batch)), batch)
    answers = evaluate.Answers(owner, data)
    for look in evaluate.looks(lambda inputs: model(**inputs), owner, data, size, "cpu"):
        answers.add(look)
        for place, number in enumerate(look[0]):
            alone, within = (u.logits[u.owner == n] for u, n in ((look[2], place), (whole, number)))
            width = alone.shape[1]
            torch.testing.assert_close(alone, within[:, :width], rtol=0, atol=1e-5)
            assert (within[:, width:] == -torch.inf).all()
    assert answers.score() == owner.score(owner.answers(whole, batch), data.truths)


def test_thinned_units_are_refused_and_the_remedy_named():
    batch = encoded().batch([0, 1, 2], "cpu")
    logits = {f"{end}_logits": torch.zeros(batch["open"].shape) for end in ("start", "end")}
    units = task().units(logits, batch)
    with pytest.raises(ValueError, match=r"of 3 windows there are 4 starts and ends.*: lower search\.examples"):
        task().answers(units.thinned(4), batch)


def test_logits_of_another_length_are_refused():
    batch = encoded().batch([0], "cpu")
    with pytest.raises(ValueError, match=r"starts and ends are \(1, 2, 3\), and the batch"):
        task().units({"start_logits": torch.zeros(1, 3), "end_logits": torch.zeros(1, 3)}, batch)


# Spans.

LOGITS = st.lists(st.sampled_from([-torch.inf, *range(-20, 20)]), min_size=7, max_size=7)


@settings(max_examples=60, deadline=None)
@given(starts=LOGITS, ends=LOGITS, best=st.integers(1, 8), longest=st.integers(1, 7))
def test_the_best_spans_are_those_that_a_search_of_all_pairs_finds(starts, ends, best, longest):
    starts, ends = (torch.tensor(each) + torch.arange(7) / 100 for each in (starts, ends))  # no two alike
    starts, ends = starts * 1.01, ends
    (found,) = best_spans(starts[None], ends[None], best, longest)
    begins, stops = (each.argsort(descending=True)[:best].tolist() for each in (starts, ends))
    pairs = [(begin, stop) for begin in begins for stop in stops if 0 < begin <= stop < begin + longest]
    scores = sorted((float(starts[a] + ends[b]) for a, b in pairs), reverse=True)
    assert [score for score, _, _ in found.best] == [score for score in scores if score > -torch.inf][:best]
    assert all((a, b) in pairs and float(starts[a] + ends[b]) == score for score, a, b in found.best)
    assert found.null == float(starts[0] + ends[0])


def window(question, text, golds=("b",)):
    return Window(question, text, [None, *((m.start(), m.end()) for m in re.finditer(r"\S+", text))], golds)


def test_a_question_is_answered_by_the_best_span_of_all_its_windows():
    windows = [
        (Spans(9.0, [(1.0, 1, 2), (0.5, 2, 2)]), window(0, "a b")),
        (Spans(0.0, [(3.0, 2, 3)]), window(0, "c d e")),
    ]
    assert answered(windows, None) == "d e"
    assert answered(windows[:1], None) == "a b"
    assert answered([(Spans(1.0, []), windows[0][1])], None) == ""


@pytest.mark.parametrize(("threshold", "answer"), [(-3.1, ""), (-3.0, "d e"), (0.0, "d e")])
def test_no_answer_has_to_be_better_by_more_than_the_threshold_in_the_window_where_it_is_least_so(threshold, answer):
    windows = [(Spans(9.0, [(1.0, 1, 2)]), window(0, "a b")), (Spans(0.0, [(3.0, 2, 3)]), window(0, "c d e"))]
    assert answered(windows, threshold) == answer


def test_a_span_outside_the_context_is_passed_over():
    assert answered([(Spans(0.0, [(9.0, 5, 7), (8.0, 0, 1), (1.0, 2, 2)]), window(0, "a b"))], None) == "b"


# Scores, against the words of the official scripts: evaluate-v1.1.py and evaluate-v2.0.py.


def normalize_answer(s):
    def remove_articles(text):
        regex = re.compile(r"\b(a|an|the)\b", re.UNICODE)
        return re.sub(regex, " ", text)

    def white_space_fix(text):
        return " ".join(text.split())

    def remove_punc(text):
        exclude = set(string.punctuation)
        return "".join(ch for ch in text if ch not in exclude)

    return white_space_fix(remove_articles(remove_punc(s.lower())))


def f1_of_1(prediction, ground_truth):
    prediction_tokens, ground_truth_tokens = (normalize_answer(each).split() for each in (prediction, ground_truth))
    num_same = sum((collections.Counter(prediction_tokens) & collections.Counter(ground_truth_tokens)).values())
    if num_same == 0:
        return 0
    precision, recall = num_same / len(prediction_tokens), num_same / len(ground_truth_tokens)
    return (2 * precision * recall) / (precision + recall)


def official_1(golds, predictions):
    """`evaluate` of version 1.1, as fractions."""
    exact = [
        max(normalize_answer(p) == normalize_answer(g) for g in gold)
        for gold, p in zip(golds, predictions, strict=True)
    ]
    f1 = [max(f1_of_1(p, g) for g in gold) for gold, p in zip(golds, predictions, strict=True)]
    return {"exact_match": sum(exact) / len(golds), "f1": sum(f1) / len(golds)}


def official_2(golds, predictions):
    """`get_raw_scores` and `make_eval_dict` of version 2.0, as fractions."""

    def compute_f1(a_gold, a_pred):
        gold_toks, pred_toks = normalize_answer(a_gold).split(), normalize_answer(a_pred).split()
        if len(gold_toks) == 0 or len(pred_toks) == 0:
            return int(gold_toks == pred_toks)
        return f1_of_1(a_pred, a_gold)

    exact, f1 = [], []
    for answers, a_pred in zip(golds, predictions, strict=True):
        gold_answers = [a for a in answers if normalize_answer(a)] or [""]
        exact.append(max(int(normalize_answer(a) == normalize_answer(a_pred)) for a in gold_answers))
        f1.append(max(compute_f1(a, a_pred) for a in gold_answers))
    found = {"exact_match": np.mean(exact), "f1": np.mean(f1)}
    for name, has in (("has_answer", True), ("no_answer", False)):
        kept = [number for number, answers in enumerate(golds) if bool(answers) == has]
        if kept:
            found |= {
                f"{name}_exact_match": np.mean([exact[n] for n in kept]),
                f"{name}_f1": np.mean([f1[n] for n in kept]),
            }
    return found


TEXT = st.lists(st.sampled_from(["the", "a", "An", "York,", "york", "N.Y.", "--", "sea", "other", "é"]), max_size=4)
TEXTS = TEXT.map(" ".join)
CASES = st.lists(st.tuples(st.lists(TEXTS, max_size=3), TEXTS), min_size=1, max_size=4)


def told(cases):
    """Answers and truths for which each question is answered as the case has it."""
    answers = [Spans(0.0, [(1.0, 1, 1)] if text else []) for _, text in cases]
    truths = [Window(n, text, [None, (0, len(text))], tuple(golds)) for n, (golds, text) in enumerate(cases)]
    return answers, truths


@settings(max_examples=150, deadline=None)
@given(cases=CASES)
def test_scores_are_those_of_the_official_scripts(cases):
    golds, said = [golds for golds, _ in cases], [text for _, text in cases]
    assert task(unanswerable=True).score(*told(cases)) == pytest.approx(official_2(golds, said))
    answerable = [(gold or ["York"], text) for gold, text in cases]
    assert task().score(*told(answerable)) == pytest.approx(official_1([gold for gold, _ in answerable], said))


def test_chance_is_never_to_answer():
    cases = [([], ""), ([], "x"), (["sea"], "x"), (["York"], "")]
    _, truths = told(cases)
    assert task(unanswerable=True).chance([*truths, truths[2]]).score == 0.5
    assert task().chance(truths[2:]).score == 0


# Rows.


def test_holdout_and_training_rows_have_no_context_in_common_and_are_the_same_every_time(tmp_path):
    rows = [
        {"question": f"q{n}", "context": f"text {n % 17}", "answers": {"text": ["text"], "answer_start": [0]}}
        for n in range(170)
    ]
    path = write(tmp_path / "rows.jsonl", rows)
    splits = task(path=path, share=0.2).splits()
    contexts = {name: set(each["context"]) for name, each in splits.items()}
    assert not contexts["train"] & contexts["holdout"]
    assert not (contexts["train"] | contexts["holdout"]) & contexts["validation"]
    assert sum(map(len, contexts.values())) == 17
    assert (len(splits["holdout"]), len(splits["validation"])) == (30, 20)
    few = task(path=path, share=0.2, train_examples=9).splits()
    assert few["train"].to_list() == splits["train"].to_list()[:9]
    assert few["holdout"].to_list() == splits["holdout"].to_list()
    assert len(set(few["train"]["context"])) > 1
    with pytest.raises(ValueError, match="all rows have one context, and nothing can be held out"):
        task(path=write(tmp_path / "one.jsonl", rows[::17])).splits()


def test_an_answer_that_is_told_a_character_off_its_place_is_moved_there(tmp_path, caplog):
    rows = [*ROWS, {**ROWS[1], "answers": {"text": ["York"], "answer_start": [16]}}]
    caplog.set_level("INFO", "nxmiformer")
    found = task(path=write(tmp_path / "rows.jsonl", rows))._checked(datasets.Dataset.from_list(rows), "there")
    assert found[-1]["answers"] == {"text": ["York"], "answer_start": [15]}
    assert found.to_list()[:-1] == ROWS
    assert "there: the positions of 1 answers were wrong by a character or two, and are corrected" in caplog.text


WRONG = {
    "no such column": ({"answers": None}, r"has no column \['answers'\]; task=answers reads"),
    "no text": ({"question": " "}, r"row 0 \(the first is 0\), column 'question': ' ', but a text is expected"),
    "not its place": (
        {"answers": {"text": ["York"], "answer_start": [3]}},
        r"row 0 .*'York' at 3, where its context has ' me",
    ),
    "other counts": ({"answers": {"text": ["York"], "answer_start": []}}, r"row 0 .* 1 texts and 0 starts"),
    "no lists": ({"answers": {"text": ["York"]}}, r"row 0 .*but lists 'text' and 'answer_start' are expected"),
    "no answer": (
        {"answers": {"text": [], "answer_start": []}},
        r"row 0 .* has no answer; task\.unanswerable=true is for",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_row_that_is_no_question_about_a_text_is_named(name):
    change, message = WRONG[name]
    rows = datasets.Dataset.from_list(
        [{key: value for key, value in {**ROWS[0], **change}.items() if value is not None}]
    )
    with pytest.raises(ValueError, match=message):
        task()._checked(rows, "there")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "f2"}, "unknown task.metric 'f2': did you mean f1"),
        ({"stride": -1}, r"task\.stride=-1: two windows share 0 tokens or more"),
        ({"longest": 0}, r"task\.longest=0: it must be at least 1"),
        ({"best": 0}, r"task\.best=0: it must be at least 1"),
        ({"threshold": float("nan")}, "Answers needs threshold to be a finite number"),
    ],
)
def test_an_impossible_value_is_refused_when_the_task_is_made(options, message):
    with pytest.raises(ValueError, match=message):
        task(**options)


def test_a_whole_run_packs_a_reader_that_reloads_with_equal_bits(tmp_path):
    path, tokenizer = write(tmp_path / "rows.jsonl", ROWS * 2), pieces(WORDS)
    asked = ["task=answers", f"task.path={path}", "task.stride=2", "train.max_length=14"]
    content, packed, place = packed_run(tmp_path, reader(), tokenizer, *asked)
    assert content["task"]["metric"] == "f1"
    assert content["scores"]["packed"].keys() == {"exact_match", "f1"}
    again = transformers.AutoModelForQuestionAnswering.from_pretrained(place)
    inputs = tokenizer(["who met Bob"], CONTEXTS[:1], return_tensors="pt")
    ours, theirs = packed(**inputs), again(**inputs)
    assert torch.equal(ours.start_logits, theirs.start_logits)
    assert torch.equal(ours.end_logits, theirs.end_logits)
