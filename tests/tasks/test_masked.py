import itertools
import math
from collections import Counter

import hypothesis
import pytest
import torch
import transformers
from hypothesis import strategies
from languages import (
    NARROW,
    SPECIAL,
    check_batches_do_not_matter,
    check_reloads,
    loss_apart,
    rows,
    seeded,
    sentences,
    tokenizer,
    written,
)
from sklearn import metrics
from torch.nn import functional as F
from whole import packed_run

from nxmiformer.tasks.batches import shuffled
from nxmiformer.tasks.masked import Masked, Masking
from nxmiformer.tasks.units import IGNORED

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
CONFIG = transformers.BertConfig(**NARROW, **SIZES)


def bert():
    return seeded(transformers.BertForMaskedLM, CONFIG)


def encoded(texts, length=16, tokens=None, **fields):
    return Masked(path="nowhere", **fields).encode(rows(text=texts), tokens or tokenizer(), length, CONFIG)


def unmasked(examples):
    pairs = ((feature["input_ids"], feature["labels"]) for feature in examples.features)
    return [[i if label == IGNORED else label for i, label in zip(*pair, strict=True)] for pair in pairs]


def test_packed_windows_hold_all_texts_in_order_parted_by_the_separator():
    tokens, texts = tokenizer(), [*sentences(9), "", "  "]
    windows = unmasked(encoded(texts, 10, tokens))
    assert all(window[0] == 2 and window[-1] == 3 for window in windows)
    assert {len(window) for window in windows[:-1]} == {10}
    inside = [token for window in windows for token in window[1:-1]]
    assert tokens.decode(inside).split(" [SEP]")[:-1] == [(" " if i else "") + text for i, text in enumerate(texts[:9])]


def test_windows_that_are_not_packed_hold_a_text_each_and_blank_texts_are_left_out():
    tokens, texts = tokenizer(), ["a b c", " ", "d", "e f g h i j k l"]
    data = encoded(texts, 6, tokens, packed=False)
    whole = [tokens(text, truncation=True, max_length=6)["input_ids"] for text in texts if text.strip()]
    assert unmasked(data) == whole
    assert data.cut == 1


@hypothesis.given(
    strategies.lists(strategies.lists(strategies.integers(0, 27), min_size=9, max_size=9), min_size=1, max_size=5),
    strategies.sampled_from([0.01, 0.15, 0.5, 0.99]),
    strategies.integers(0, 2**32),
)
@hypothesis.settings(max_examples=50)
def test_a_row_has_its_share_of_masks_and_one_at_least_and_no_special_token_is_masked(given, share, seed):
    ids, special = torch.tensor(given), len(SPECIAL)
    masked, labels = Masking(tokenizer(), share)(ids, torch.Generator().manual_seed(seed))
    ordinary, chosen = ids >= special, labels != IGNORED
    assert not (chosen & ~ordinary).any()
    for row, count in zip(chosen.sum(-1).tolist(), ordinary.sum(-1).tolist(), strict=True):
        assert row == min(count, max(1, torch.tensor(share * count).round().item()))
    assert torch.equal(labels[chosen], ids[chosen])
    assert torch.equal(masked[~chosen], ids[~chosen])


def test_of_the_masked_tokens_eight_in_ten_are_hidden_and_one_is_another_word():
    ids = torch.randint(5, 28, (400, 100), generator=torch.Generator().manual_seed(1))
    masked, labels = Masking(tokenizer(), 0.5)(ids, torch.Generator().manual_seed(2))
    chosen = labels != IGNORED
    assert chosen.sum() == 20000
    shares = (
        Counter((masked[chosen] == 4).tolist())[True] / 20000,
        (masked[chosen] == ids[chosen]).float().mean().item(),
    )
    assert shares == pytest.approx((0.8 + 0.1 / 28, 0.1 + 0.1 / 28), abs=0.01)


def test_masks_of_an_evaluation_are_those_of_the_examples_number_alone():
    texts = sentences(12)
    torch.manual_seed(5)
    first, longer = encoded(texts, packed=False), encoded([*texts, *sentences(4, seed=1)], packed=False)
    assert first.features == longer.features[:12]
    same = encoded(["a b c d e f g h i j"] * 12, packed=False)
    assert len({tuple(feature["labels"]) for feature in same.features}) > 5


def test_training_has_other_masks_each_time_fixed_by_seed_and_place():
    data = encoded(sentences(30))

    def batches(start, count, seed=0):
        return list(itertools.islice(shuffled(data, 4, seed, start, "cpu"), count))

    epoch = len(data) // 4
    sequence = batches(0, 3 * epoch)
    for batch, again in zip(sequence[5:8], batches(5, 3), strict=True):
        assert all(torch.equal(batch[key], again[key]) for key in batch)
    assert len({str(batch["labels"].tolist()) for batch in sequence}) == len(sequence)
    windows = {tuple(window) for window in unmasked(data)}
    for batch in sequence:
        whole = torch.where(batch["labels"] == IGNORED, batch["input_ids"], batch["labels"])
        lengths = batch["attention_mask"].sum(-1).tolist()
        assert {tuple(row[:length]) for row, length in zip(whole.tolist(), lengths, strict=True)} <= windows


def test_the_loss_is_the_models_own():
    task, data = Masked(path="nowhere"), encoded(sentences(20))
    assert loss_apart(task, bert(), data) < 1e-6


def test_neither_padding_nor_the_size_of_a_batch_changes_a_prediction():
    check_batches_do_not_matter(Masked(path="nowhere"), bert(), encoded(sentences(14), packed=False))


def test_scores_are_those_of_sklearn_and_torch_on_the_masked_tokens():
    task, model, data = Masked(path="nowhere"), bert(), encoded(sentences(14), packed=False)
    answers = check_batches_do_not_matter(task, model, data)
    with torch.no_grad():
        logits = torch.cat(
            [
                model(input_ids=torch.tensor([list(feature["input_ids"])])).logits[0][
                    torch.tensor(feature["labels"]) >= 0
                ]
                for feature in data.features
            ]
        )
    truths = [token for truth in data.truths for token in truth]
    scores = task.score(answers, data.truths)
    assert scores["accuracy"] == metrics.accuracy_score(truths, logits.argmax(-1).tolist())
    assert scores["loss"] == pytest.approx(F.cross_entropy(logits, torch.tensor(truths)).item(), rel=1e-5)
    assert scores["perplexity"] == pytest.approx(math.exp(scores["loss"]))


def test_chance_is_the_score_of_knowing_how_often_each_token_is_masked():
    truths = [[5, 5, 5], [6], [7, 5]]
    assert Masked(path="nowhere").chance(truths).score == pytest.approx(4 / 6)
    entropy = metrics.log_loss([5, 5, 5, 6, 7, 5], [[4 / 6, 1 / 6, 1 / 6]] * 6)
    by_loss, by_perplexity = (Masked(path="nowhere", metric=name).chance(truths) for name in ("loss", "perplexity"))
    assert (by_loss.score, by_loss.better) == (pytest.approx(entropy), "lower")
    assert by_perplexity.score == pytest.approx(math.exp(entropy))
    assert by_perplexity.beaten(1.0)
    assert not by_perplexity.beaten(by_perplexity.score)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"metric": "f1"}, "unknown task.metric of masked words 'f1'"),
        ({"share_masked": 1.0}, r"task.share_masked=1.0: a share of the tokens is in \(0, 1\)"),
        (
            {"packed": False, "between": "\n"},
            "task.between='\\\\n' joins texts, and task.packed=false keeps them apart",
        ),
        ({"packed": "yes"}, "Masked needs packed to be true or false, not 'yes'"),
    ],
)
def test_a_value_that_means_nothing_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Masked(path="nowhere", **fields)


def test_a_tokenizer_without_a_mask_and_windows_without_room_are_refused():
    with pytest.raises(ValueError, match="the tokenizer has no mask token"):
        encoded(["a b"], tokens=tokenizer(mask_token=None))
    with pytest.raises(ValueError, match=r"train.max_length=2: 2 special tokens leave no position for a word"):
        encoded(["a b"], 2)
    with pytest.raises(ValueError, match="the texts of a split are all blank"):
        encoded(["", " "])


def test_a_checkpoint_without_a_head_gets_one_that_is_tied_trained_packed_and_read_back(tmp_path):
    path = written(tmp_path / "texts.jsonl", text=sentences(60))
    backbone = seeded(transformers.BertModel, CONFIG)
    content, model, packed = packed_run(tmp_path, backbone, tokenizer(), "task=masked", f"task.path={path}")
    check_reloads(Masked(path=str(path)), content, model, packed)
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight
    assert model.cls.predictions.decoder.bias is model.cls.predictions.bias
    assert content["task"]["metric"] == "accuracy"
    assert set(content["scores"]["packed"]) == {"accuracy", "perplexity", "loss"}
