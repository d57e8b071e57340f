"""The laws of the embedded task: balance, disjoint splits, determinism, soundness, and no shallow shortcut."""

import random
import re

import numpy as np
import pytest
import scipy.sparse
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from nxmiformer.tasks.grammar import LIMIT, PHENOMENA, Grammar

SIZES = {"train": 2400, "holdout": 240, "validation": 600}


@pytest.fixture(scope="module")
def splits():
    return Grammar(**SIZES).splits()


def words(sentence):
    return re.findall(r"\w+|\.", sentence.lower())


def test_splits_have_the_sizes_asked_for(splits):
    assert {split: len(rows) for split, rows in splits.items()} == SIZES


def test_labels_are_balanced_in_each_phenomenon_of_each_split(splits):
    for split, rows in splits.items():
        for phenomenon in PHENOMENA:
            labels = [row["label"] for row in rows if row["phenomenon"] == phenomenon]
            assert len(labels) == SIZES[split] / len(PHENOMENA)
            assert 2 * sum(labels) == len(labels)


def test_no_premise_occurs_twice(splits):
    premises = [premise for rows in splits.values() for premise in rows["premise"]]
    assert len(set(premises)) == len(premises)


def test_same_seed_gives_same_splits_and_another_seed_others(splits):
    again, other = Grammar(**SIZES).splits(), Grammar(**SIZES, seed=1).splits()
    for split, rows in splits.items():
        assert again[split].to_list() == rows.to_list()
        assert other[split].to_list() != rows.to_list()


def test_validation_does_not_depend_on_the_other_sizes(splits):
    smaller = Grammar(train=12, holdout=12, validation=SIZES["validation"]).splits()
    assert smaller["validation"].to_list() == splits["validation"].to_list()


@pytest.mark.parametrize("phenomenon", PHENOMENA)
def test_no_pair_can_have_both_labels(phenomenon):
    rng = random.Random(0)
    entailed, other = ({PHENOMENA[phenomenon](rng, label) for _ in range(5_000)} for label in (True, False))
    assert not entailed & other


@pytest.mark.parametrize("phenomenon", PHENOMENA)
def test_a_hypothesis_and_its_denial_are_not_both_entailed(phenomenon):
    rng = random.Random(0)
    entailed: dict[str, set[str]] = {}
    for _ in range(5_000):
        premise, hypothesis = PHENOMENA[phenomenon](rng, True)
        entailed.setdefault(premise, set()).add(hypothesis)
    for hypotheses in entailed.values():
        assert not any(text.replace("was not", "was") in hypotheses for text in hypotheses if "was not" in text)


@pytest.mark.parametrize("phenomenon", PHENOMENA)
def test_there_are_more_premises_than_the_limit_asks_for(phenomenon):
    rng = random.Random(0)
    share = LIMIT // len(PHENOMENA)
    for label in (True, False):
        drawn = {PHENOMENA[phenomenon](rng, label)[0] for _ in range(3 * share // 2)}
        assert len(drawn) > share


def test_vocabulary_is_exactly_the_words_that_are_written():
    rng = random.Random(0)
    pairs = [rule(rng, label) for rule in PHENOMENA.values() for label in (True, False) for _ in range(2000)]
    written = {word for pair in pairs for sentence in pair for word in words(sentence)}
    assert tuple(sorted(written)) == Grammar().vocabulary


def test_sentences_begin_with_a_capital_and_end_with_a_full_stop(splits):
    for column in Grammar.columns:
        assert all(re.fullmatch(r"[A-Z][a-z]*( [a-z]+)+\.", text) for text in splits["validation"][column])


def test_bag_of_words_stays_far_below_the_ceiling(splits):
    vectorizers = {
        column: CountVectorizer(ngram_range=(1, 2)).fit(splits["train"][column]) for column in Grammar.columns
    }

    def features(split):
        parts = [vectorizer.transform(splits[split][column]) for column, vectorizer in vectorizers.items()]
        return scipy.sparse.hstack(parts).tocsr()

    classifier = LogisticRegression(max_iter=200).fit(features("train"), splits["train"]["label"])
    assert classifier.score(features("validation"), splits["validation"]["label"]) < 0.7


def test_length_alone_stays_far_below_the_ceiling(splits):
    def lengths(split):
        rows = zip(*(splits[split][column] for column in Grammar.columns), strict=True)
        return np.array([[len(words(text)) for text in pair] for pair in rows])

    classifier = LogisticRegression().fit(lengths("train"), splits["train"]["label"])
    assert classifier.score(lengths("validation"), splits["validation"]["label"]) < 0.65


@pytest.mark.parametrize("split", SIZES)
@pytest.mark.parametrize("size", [0, -12, 13])
def test_a_size_that_cannot_be_balanced_is_refused(split, size):
    with pytest.raises(ValueError, match=split):
        Grammar(**{split: size})


def test_more_pairs_than_the_limit_are_refused():
    with pytest.raises(ValueError, match="at most"):
        Grammar(train=LIMIT)


def test_score_is_the_share_of_right_answers():
    logits = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 2.0], [3.0, 1.0]])
    assert Grammar().score(logits, np.array([0, 1, 0, 0])) == {"accuracy": 0.75}
