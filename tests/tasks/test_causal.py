import itertools
import math
from dataclasses import replace

import pytest
import torch
import transformers
from languages import (
    NARROW,
    check_batches_do_not_matter,
    check_reloads,
    loss_apart,
    rows,
    seeded,
    sentences,
    tokenizer,
    units_of,
    written,
)
from torch.nn import functional as F
from whole import packed_run

from nxmiformer.tasks.batches import shuffled
from nxmiformer.tasks.causal import Causal
from nxmiformer.tasks.outcomes import Classes
from nxmiformer.tasks.plain import Tally, tallies
from nxmiformer.tasks.units import IGNORED

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
LLAMA = transformers.LlamaConfig(**NARROW, **SIZES, num_key_value_heads=1, bos_token_id=3, eos_token_id=3)
GPT2 = transformers.GPT2Config(vocab_size=28, n_positions=32, n_embd=16, n_layer=1, n_head=2, bos_token_id=3)


def bare():
    return tokenizer("$A", pad_token=None, mask_token=None)


def padded():
    return tokenizer("$A", padding_side="left")


def encoded(texts, length=16, tokens=None, **fields):
    return Causal(path="nowhere", **fields).encode(rows(text=texts), tokens or padded(), length, LLAMA)


def models():
    return [seeded(transformers.LlamaForCausalLM, LLAMA), seeded(transformers.GPT2LMHeadModel, GPT2)]


def test_windows_hold_all_texts_in_order_each_with_an_end():
    tokens, texts = padded(), sentences(9)
    data = encoded([texts[0], " ", *texts[1:]], 10, tokens)
    stream = [token for feature in data.features for token in feature["input_ids"]]
    assert tokens.decode(stream).split(" [SEP]") == [(" " if i else "") + text for i, text in enumerate(texts)] + [""]
    assert {len(feature["input_ids"]) for feature in data.features[:-1]} == {10}


def test_a_text_between_texts_takes_the_place_of_the_end():
    data = encoded(["a b", "", "c"], between=" w ")
    assert padded().decode(data.features[0]["input_ids"]) == "a b w w c"


@pytest.mark.parametrize("stride", [None, 1, 3, 5, 8])
@pytest.mark.parametrize("texts", [sentences(7), sentences(2, seed=3, longest=3)], ids=["long", "short"])
def test_with_overlap_every_token_but_the_first_is_scored_once_with_what_comes_before(stride, texts):
    data = encoded(texts, 8, stride=stride)
    stream = padded()(" [SEP] ".join(texts) + " [SEP]")["input_ids"]
    step = stride or 8
    seen = []
    for number, feature in enumerate(data.features):
        assert feature["input_ids"].tolist() == stream[number * step : number * step + 8]
        places = [i for i, label in enumerate(feature["labels"]) if label != IGNORED and i]
        assert [stream[number * step + place] for place in places] == list(data.truths[number])
        seen += [number * step + place for place in places]
    lost = set(range(0, len(stream), 8)) if step == 8 else {0}
    assert seen == [place for place in range(len(stream)) if place not in lost]


def test_training_learns_from_every_token_of_a_window_that_overlaps():
    data = encoded(sentences(12), 8, stride=3)
    for batch in itertools.islice(shuffled(data, 4, 0, 0, "cpu"), 6):
        assert torch.equal(batch["labels"] != IGNORED, batch["attention_mask"] == 1)
        assert torch.equal(
            batch["labels"][batch["attention_mask"] == 1], batch["input_ids"][batch["attention_mask"] == 1]
        )


@pytest.mark.parametrize("stride", [None, 5])
def test_the_loss_is_the_models_own(stride):
    task, data = Causal(path="nowhere", stride=stride), encoded(sentences(12), stride=stride)
    assert max(loss_apart(task, model, data) for model in models()) < 1e-6


def test_neither_padding_nor_the_size_of_a_batch_changes_a_prediction():
    data = encoded(sentences(20))
    features = [{key: row[: 16 - number % 5] for key, row in each.items()} for number, each in enumerate(data.features)]
    shorter = type(data)(features, data.padding, truths=data.truths, side=data.side)
    for model in models():
        check_batches_do_not_matter(Causal(path="nowhere"), model, shorter)


@pytest.mark.parametrize("stride", [None, 4])
def test_perplexity_is_that_of_a_loop_over_single_tokens(stride):
    task, model, data = Causal(path="nowhere", stride=stride), models()[0], encoded(sentences(8), 8, stride=stride)
    stream = padded()(" [SEP] ".join(sentences(8)) + " [SEP]")["input_ids"]
    step, losses, done = stride or 8, [], 0
    with torch.no_grad():
        for first in range(0, len(stream), step):
            for place in range(max(first + 1, done), min(first + 8, len(stream))):
                logits = model(input_ids=torch.tensor([stream[first:place]])).logits[0, -1]
                losses.append(F.cross_entropy(logits, torch.tensor(stream[place])).item())
            done = first + 8
            if done >= len(stream):
                break
    scores = task.score(units_of(task, model, data, 4)[1], data.truths)
    assert scores["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert scores["perplexity"] == pytest.approx(math.exp(scores["loss"]))
    assert sum(map(len, data.truths)) == len(losses)


def test_chance_is_the_perplexity_of_how_often_each_token_occurs():
    truths = [[5, 6], [6, 7, 7, 7]]
    counts = {5: 1, 6: 2, 7: 3}
    expected = math.exp(-sum(count / 6 * math.log(count / 6) for count in counts.values()))
    chance = Causal(path="nowhere").chance(truths)
    assert (chance.score, chance.better) == (pytest.approx(expected), "lower")
    assert chance.beaten(expected - 2.1 * chance.error)
    assert not chance.beaten(expected)


def test_a_perplexity_beyond_all_numbers_is_a_number():
    scores = Causal(path="nowhere").score([Tally(2, 0, 1e9)], [[1, 2]])
    assert math.isfinite(scores["perplexity"])
    assert scores["loss"] == 5e8


class Watched(Classes):
    """Remembers of how many units losses were asked for at once."""

    def __init__(self):
        self.__dict__["sizes"] = []

    def losses(self, logits, targets):
        self.sizes.append(len(logits))
        return super().losses(logits, targets)


def test_losses_are_computed_a_few_units_at_a_time_and_come_to_the_same(monkeypatch):
    task, model, data = Causal(path="nowhere"), models()[0], encoded(sentences(8))
    batch = data.batch(range(len(data)), "cpu")
    with torch.no_grad():
        units = task.units(model(**task.inputs(batch)), batch)
    whole, outcome = tallies(units, len(data)), Watched()
    monkeypatch.setattr("nxmiformer.tasks.plain.CHUNK", 3 * 28)
    parts = tallies(replace(units, outcome=outcome), len(data))
    assert [list(each) for each in parts] == [pytest.approx(list(each)) for each in whole]
    assert max(outcome.sizes) == 3


@pytest.mark.parametrize(
    ("length", "fields", "message"),
    [
        (1, {}, "train.max_length=1: a token and the next are 2"),
        (8, {"stride": 9}, "task.stride=9: windows of train.max_length=8 would leave tokens out"),
        (8, {"stride": 0}, "task.stride=0: a window begins at least 1 token after"),
    ],
)
def test_windows_that_cannot_be_are_refused(length, fields, message):
    with pytest.raises(ValueError, match=message):
        encoded(["a b c"], length, **fields)


def test_a_tokenizer_without_an_end_is_refused_unless_a_text_parts_texts():
    none = tokenizer("$A", eos_token=None)
    with pytest.raises(ValueError, match="the tokenizer has no token that separates documents, such as eos_token"):
        encoded(["a b c"], tokens=none)
    assert len(encoded(["a", "b"], tokens=none, between="\n")) == 1
    with pytest.raises(ValueError, match="a split has 0 tokens, and none follows another"):
        encoded(["", "  "])


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"text": ["a", None, "b", None]}, r"column 'text', row 1 .*: None, but a text is expected; so in 2 of 4 rows"),
        ({"words": ["a", "b"]}, r"has no column \['text'\]; it has \['words'\]"),
        ({"text": [1, 2]}, "column 'text' holds int64, such as 1, not texts"),
    ],
)
def test_what_is_no_text_is_named(tmp_path, texts, message):
    with pytest.raises(ValueError, match=message):
        Causal(path=str(written(tmp_path / "rows.jsonl", **texts))).splits()


def test_the_lines_of_a_text_file_stay_together_where_a_holdout_is_cut(tmp_path):
    lines = sentences(400)
    (tmp_path / "book.txt").write_text("\n".join(lines) + "\n")
    splits = Causal(path=str(tmp_path / "book.txt")).splits()
    blocks = [text.split("\n") for split in splits.values() for text in split["text"]]
    assert sorted(line for block in blocks for line in block) == sorted(lines)
    whole = "\n".join(lines)
    assert all("\n".join(block) in whole and len(block) == 20 for block in blocks)


@pytest.mark.parametrize("model", models(), ids=["llama", "gpt2"])
def test_a_decoder_whose_tokenizer_has_no_padding_is_trained_packed_and_read_back(tmp_path, model):
    path = written(tmp_path / "texts.jsonl", text=sentences(60))
    given = ["task=causal", f"task.path={path}", "task.stride=12"]
    content, read, packed = packed_run(tmp_path, model, bare(), *given)
    check_reloads(Causal(path=str(path), stride=12), content, read, packed)
    assert content["task"]["metric"] == "perplexity"
    assert set(content["scores"]["packed"]) == {"perplexity", "loss"}
