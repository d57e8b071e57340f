import dataclasses
import itertools
import logging
import random

import datasets
import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from nxmiformer.tasks.batches import Examples, batches_per_epoch, shuffled, sorted_batches
from nxmiformer.tasks.labelled import LabelledTexts
from nxmiformer.tasks.task import encode_splits

CONFIG = transformers.BertConfig()


def examples(count, seed=0):
    """Example i has 1 to 20 tokens, all of them i + 1, and label i."""
    rng = random.Random(seed)
    features = []
    for i in range(count):
        length = rng.randint(1, 20)
        features.append({"input_ids": [i + 1] * length, "attention_mask": [1] * length})
    return Examples(features, {"input_ids": 0, "attention_mask": 0}, {"labels": torch.arange(count)})


def labels(batches, count):
    return [batch["labels"].tolist() for batch in itertools.islice(batches, count)]


def flat(lists):
    return list(itertools.chain.from_iterable(lists))


def order(data, size, count, seed=0, start=0, share=slice(None)):
    return labels(shuffled(data, size, seed, start, "cpu", share=share), count)


def test_the_order_depends_on_the_seed_and_the_epoch_alone():
    data = examples(40)
    first = order(data, 4, 20)
    torch.manual_seed(99)
    assert order(data, 4, 20) == first
    assert order(data, 4, 20, seed=1) != first
    assert first[:10] != first[10:]


@pytest.mark.parametrize("start", [1, 9, 10, 13, 25])
def test_from_any_batch_on_the_same_sequence_follows(start):
    data = examples(43)
    assert order(data, 4, 30 - start, start=start) == order(data, 4, 30)[start:]


@pytest.mark.parametrize(("count", "size"), [(40, 4), (43, 4), (8, 8), (300, 3)])
def test_every_example_comes_once_an_epoch_but_for_those_that_fill_no_batch(count, size):
    data, full = examples(count), count // size
    assert batches_per_epoch(count, size) == full
    sequence = order(data, size, 3 * full)
    for epoch in range(3):
        seen = flat(sequence[epoch * full : (epoch + 1) * full])
        assert len(seen) == len(set(seen)) == full * size
        assert set(seen) <= set(range(count))


def test_what_an_epoch_leaves_over_is_not_always_the_same():
    data = examples(11)
    sequence = order(data, 4, 2 * 20)
    left = {frozenset(range(11)) - set(sequence[2 * i] + sequence[2 * i + 1]) for i in range(20)}
    assert len(left) > 5


@pytest.mark.parametrize("vary", [None, lambda batch, draw: {**batch, "drawn": torch.rand(6, generator=draw)}])
def test_shares_of_a_batch_are_its_rows_as_they_are_in_the_whole(vary):
    data = dataclasses.replace(examples(50), vary=vary)
    streams = [shuffled(data, 6, 0, 0, "cpu", share=share) for share in (slice(None), slice(0, 4), slice(4, 6))]
    for whole, *parts in itertools.islice(zip(*streams, strict=True), 20):
        for name, rows in whole.items():
            assert torch.equal(torch.cat([part[name] for part in parts]), rows)


def test_examples_of_like_length_go_together_within_a_window():
    data = examples(32 * 8, seed=3)
    lengths = data.lengths()
    spans = [max(lengths[i] for i in batch) - min(lengths[i] for i in batch) for batch in order(data, 8, 32)]
    assert max(spans) <= 2
    assert len(set(map(tuple, order(data, 8, 32)))) == 32


def test_batches_are_padded_on_the_right_with_each_features_own_filler_to_a_multiple_of_eight():
    features = [
        {"input_ids": [5, 6, 7], "token_type_ids": [0, 1, 1]},
        {"input_ids": [8] * 9, "token_type_ids": [1] * 9},
    ]
    data = Examples(features, {"input_ids": 3, "token_type_ids": 0}, {"labels": torch.tensor([0.5, 1.5])})
    batch = data.batch([1, 0], "cpu")
    assert batch["input_ids"].tolist() == [[8] * 9 + [3] * 7, [5, 6, 7] + [3] * 13]
    assert batch["token_type_ids"].tolist() == [[1] * 9 + [0] * 7, [0, 1, 1] + [0] * 13]
    assert batch["labels"].tolist() == [1.5, 0.5]
    assert batch["input_ids"].dtype == torch.int64
    assert data.batch([0], "cpu")["input_ids"].shape == (1, 8)


def test_too_few_examples_for_one_batch_are_an_error():
    with pytest.raises(ValueError, match="a batch of 8 needs at least as many training examples, and there are 7"):
        batches_per_epoch(7, 8)
    with pytest.raises(ValueError, match="a batch of 8 needs"):
        next(shuffled(examples(7), 8, 0, 0, "cpu"))


def test_no_random_number_is_taken_from_the_global_generators():
    torch.manual_seed(0), random.seed(0), np.random.seed(0)  # noqa: NPY002
    data = examples(20)
    order(data, 4, 12)
    drawn = torch.rand(2).tolist(), random.random(), np.random.rand()  # noqa: NPY002
    torch.manual_seed(0), random.seed(0), np.random.seed(0)  # noqa: NPY002
    assert (torch.rand(2).tolist(), random.random(), np.random.rand()) == drawn  # noqa: NPY002


@pytest.mark.parametrize("size", [1, 4, 7, 100])
def test_evaluation_takes_every_example_once_in_order_of_length(size):
    data = examples(30)
    batches = sorted_batches(data, size)
    assert sorted(flat(batches)) == list(range(30))
    lengths = [data.lengths()[i] for i in flat(batches)]
    assert lengths == sorted(lengths)
    assert all(len(batch) == size for batch in batches[:-1])


class Pairs(LabelledTexts):
    name, metric, columns = "pairs", "accuracy", ("one", "two")

    def __init__(self, names):
        self.labels = names

    def splits(self):
        raise NotImplementedError

    def score(self, answers, truths):
        raise NotImplementedError


def tokenizer():
    words = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b", "c"])}
    core = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = ["input_ids", "token_type_ids", "attention_mask"]
    return transformers.PreTrainedTokenizerFast(tokenizer_object=core, pad_token="[PAD]", model_input_names=names)


def test_encode_tokenises_pairs_and_truncates_them():
    split = datasets.Dataset.from_dict({"one": ["a b", "c"], "two": ["c", "a a a a a"], "label": [1, 0]})
    data = Pairs(("no", "yes")).encode(split, tokenizer(), 6, CONFIG)
    assert [feature["input_ids"] for feature in data.features] == [[2, 4, 5, 3, 6, 3], [2, 6, 3, 4, 4, 3]]
    assert data.features[0]["token_type_ids"] == [0, 0, 0, 0, 1, 1]
    assert data.whole["labels"].tolist() == data.truths == [1, 0]
    assert data.whole["labels"].dtype == torch.int64
    assert data.padding == {"input_ids": 0, "token_type_ids": 0, "attention_mask": 0}


def test_encode_takes_the_labels_of_a_regression_as_numbers():
    split = datasets.Dataset.from_dict({"one": ["a"], "two": ["b"], "label": [2.5]})
    data = Pairs(()).encode(split, tokenizer(), 8, CONFIG)
    assert data.whole["labels"].dtype == torch.float32
    assert data.whole["labels"].tolist() == data.truths == [2.5]


def test_texts_are_padded_on_the_tokenizers_side_and_no_wider_than_they_may_be():
    split = datasets.Dataset.from_dict({"one": ["a b", "c"], "two": ["c", "a a a a a"], "label": [1, 0]})
    left = tokenizer()
    left.padding_side = "left"
    for each, row in ((tokenizer(), [2, 4, 5, 3, 6, 3, 0, 0]), (left, [0, 0, 2, 4, 5, 3, 6, 3])):
        assert Pairs(("no", "yes")).encode(split, each, 9, CONFIG).batch([0], "cpu")["input_ids"].tolist() == [row]
    data = Pairs(("no", "yes")).encode(split, left, 9, CONFIG)
    assert data.batch([0, 1], "cpu")["input_ids"].shape == (2, 9)
    assert data.batch([0, 1], "cpu")["attention_mask"][0].tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 1]


@pytest.mark.parametrize(("length", "cut"), [(9, 0), (8, 1), (6, 1), (5, 2)])
def test_texts_that_are_cut_off_are_counted_by_either_kind_of_tokenizer(length, cut, monkeypatch):
    split = datasets.Dataset.from_dict({"one": ["a b", "c"], "two": ["c", "a a a a a"], "label": [1, 0]})
    assert Pairs(("no", "yes")).encode(split, tokenizer(), length, CONFIG).cut == cut
    monkeypatch.setattr(transformers.BatchEncoding, "encodings", None)  # as of a tokenizer written in Python
    assert Pairs(("no", "yes")).encode(split, tokenizer(), length, CONFIG).cut == cut


class Split(Pairs):
    def splits(self):
        rows = datasets.Dataset.from_dict({"one": ["a", "c"], "two": ["c", "a a a a a"], "label": [1, 0]})
        return datasets.DatasetDict(train=rows, validation=rows.select([0]))


def test_a_run_says_how_many_texts_of_each_split_are_cut_off(caplog):
    caplog.set_level(logging.INFO, "nxmiformer")
    task = Split(("no", "yes"))
    encode_splits(task.splits(), task, tokenizer(), 9, CONFIG)
    assert not caplog.records
    encode_splits(task.splits(), task, tokenizer(), 8, CONFIG)
    (record,) = caplog.records
    assert record.getMessage() == "train.max_length=8 cuts texts off: 1 of 2 in train, 0 of 1 in validation"


def test_rows_of_each_name_are_padded_to_their_own_longest_and_on_the_side_that_is_asked_for():
    features = [{"input_ids": [5] * 3, "labels": [1] * 12}, {"input_ids": [6] * 5, "labels": [2]}]
    data = Examples(features, {"input_ids": 0, "labels": -100}, side="left")
    batch = data.batch([0, 1], "cpu")
    assert batch["input_ids"].tolist() == [[0] * 5 + [5] * 3, [0] * 3 + [6] * 5]
    assert batch["labels"].shape == (2, 16)
    assert (batch["labels"] == -100).sum() == 4 + 15


def test_a_training_batch_is_varied_by_its_place_alone():
    data = dataclasses.replace(examples(12), vary=lambda batch, draw: {"drawn": torch.rand(3, generator=draw)})

    def drawn(start, count):
        batches = shuffled(data, 3, 5, start, "cpu")
        return torch.stack([next(batches)["drawn"] for _ in range(count)])

    assert torch.equal(drawn(0, 6)[2:], drawn(2, 4))
    assert len(drawn(0, 6).unique(dim=0)) == 6
