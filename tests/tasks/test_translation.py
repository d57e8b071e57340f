import datasets
import pytest
import sacrebleu
import torch
import transformers
from accelerate.state import AcceleratorState
from languages import (
    NARROW,
    check_batches_do_not_matter,
    check_reloads,
    loss_apart,
    rows,
    seeded,
    sentences,
    tokenizer,
    written,
)
from tokenizers import processors
from whole import packed_run

from nxmiformer.tasks.translation import Reference, Translation
from nxmiformer.tasks.units import IGNORED
from nxmiformer.train.evaluate import Answers, looks

TOKENS = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "forced_eos_token_id": None}
DEEP = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
DEEP |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, **NARROW, **TOKENS}
T5 = transformers.T5Config(
    vocab_size=28, d_model=16, d_ff=32, d_kv=8, num_layers=1, num_heads=2, decoder_start_token_id=0, **TOKENS
)
MARIAN = transformers.MarianConfig(**DEEP, decoder_start_token_id=0)
BART = transformers.BartConfig(**DEEP, decoder_start_token_id=3)
KINDS = {
    "t5": (transformers.T5ForConditionalGeneration, T5, "$A [SEP]"),
    "marian": (transformers.MarianMTModel, MARIAN, "$A [SEP]"),
    "bart": (transformers.BartForConditionalGeneration, BART, "[CLS] $A [SEP]"),
}
each_kind = pytest.mark.parametrize(("make", "config", "frame"), KINDS.values(), ids=KINDS)
PAIRS = {"en": sentences(14), "de": sentences(14, seed=1)}


def task(**fields):
    return Translation(**{"path": "nowhere", "columns": ("en", "de"), "max_new_tokens": 8, **fields})


def encoded(config=MARIAN, frame="$A [SEP]", length=16, tokens=None, pairs=PAIRS, **fields):
    return task(**fields).encode(rows(**pairs), tokens or tokenizer(frame), length, config)


@each_kind
def test_the_decoder_is_given_what_the_model_would_make_of_the_labels(make, config, frame):
    model, data = seeded(make, config), encoded(config, frame)
    batch = data.batch(range(len(data)), "cpu")
    counted, own = batch["labels"] != IGNORED, model.prepare_decoder_input_ids_from_labels(labels=batch["labels"])
    assert torch.equal(batch["decoder_input_ids"][counted], own[counted])
    assert "decoder_input_ids" in task().inputs(batch)
    assert "labels" not in task().inputs(batch)


@each_kind
def test_the_loss_is_the_models_own(make, config, frame):
    assert loss_apart(task(), seeded(make, config), encoded(config, frame)) < 1e-6


@each_kind
def test_neither_padding_nor_the_size_of_a_batch_changes_a_prediction(make, config, frame):
    check_batches_do_not_matter(task(), seeded(make, config), encoded(config, frame))


def answers(model, data, size, **fields):
    found = Answers(task(**fields), data, model)
    for look in looks(lambda inputs: model(**inputs), task(**fields), data, size, "cpu"):
        found.add(look)
    return found.all


@each_kind
@pytest.mark.parametrize("beams", [1, 3])
def test_what_is_written_is_what_the_model_generates_from_the_text_alone(make, config, frame, beams):
    pairs = {name: texts[:5] for name, texts in PAIRS.items()}
    model, data, tokens = seeded(make, config), encoded(config, frame, pairs=pairs), tokenizer(frame)
    for text, found in zip(pairs["en"], answers(model, data, 3, beams=beams), strict=True):
        given = torch.tensor([tokens(text)["input_ids"]])
        alone = model.generate(given, num_beams=beams, max_new_tokens=8, do_sample=False)[0, 1:]
        assert tokens.decode(found, skip_special_tokens=True) == tokens.decode(alone, skip_special_tokens=True)


def test_without_a_model_the_likeliest_token_of_each_place_answers():
    model, data = seeded(transformers.MarianMTModel, MARIAN), encoded()
    for number, found in enumerate(answers_of_outputs(model, data)):
        feature = data.features[number]
        with torch.no_grad():
            logits = model(
                input_ids=torch.tensor([feature["input_ids"]]),
                decoder_input_ids=torch.tensor([feature["decoder_input_ids"]]),
            ).logits
        assert found == logits[0].argmax(-1).tolist()


def answers_of_outputs(model, data):
    found = Answers(task(), data)
    for look in looks(lambda inputs: model(**inputs), task(), data, 4, "cpu"):
        found.add(look)
    return found.all


def test_without_a_model_units_that_were_thinned_out_are_refused():
    model, data = seeded(transformers.MarianMTModel, MARIAN), encoded()
    batch = data.batch(range(4), "cpu")
    with torch.no_grad():
        units = task().units(model(**task().inputs(batch)), batch)
    count = len(units)
    with pytest.raises(ValueError, match=f"{count - 3} of {count} are kept: lower search.examples"):
        task().answers(units.thinned(count - 3), batch)


def test_scores_are_those_of_sacrebleu_on_the_texts():
    data, tokens = encoded(), tokenizer()
    given = [tokens(text)["input_ids"] for text in PAIRS["de"][:-1]] + [[2, 3, 0, 0]]
    scores = task().score(given, data.truths)
    texts = [*PAIRS["de"][:-1], ""]
    assert scores["bleu"] == pytest.approx(sacrebleu.corpus_bleu(texts, [PAIRS["de"]], force=True).score)
    assert scores["chrf"] == pytest.approx(sacrebleu.corpus_chrf(texts, [PAIRS["de"]]).score)
    assert 50 < scores["bleu"] < 100
    same = [tokens(text)["input_ids"] for text in PAIRS["de"]]
    assert task().score(same, data.truths) == pytest.approx({"bleu": 100, "chrf": 100})


def test_chance_is_no_point_of_bleu():
    chance = task().chance([Reference("a b", tokenizer())])
    assert (chance.score, chance.better) == (0, "higher")


def test_a_prefix_stands_before_each_text_and_a_text_that_does_not_fit_is_cut_off():
    tokens = tokenizer("$A [SEP]")
    data = encoded(length=6, pairs={"en": ["a b", "a b c d e", "a"], "de": ["a", "b", "a b c d e f"]}, prefix="w v ")
    assert tokens.decode(data.features[0]["input_ids"]) == "w v a b [SEP]"
    assert tokens.decode(data.features[1]["input_ids"]) == "w v a b c [SEP]"
    assert tokens.decode(data.features[2]["labels"]) == "a b c d e [SEP]"
    assert data.cut == 2
    assert encoded(length=6, pairs={"en": ["a b c d e"], "de": ["a b c d e"]}).cut == 0


class TwoLanguages(transformers.PreTrainedTokenizerFast):
    """Writes translations in a form of their own, as Marian has a vocabulary of its own for them."""

    def _switch_to_target_mode(self):
        self.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )

    def _switch_to_input_mode(self):
        self.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="$A [SEP]", special_tokens=[("[SEP]", 3)]
        )


def test_translations_are_tokenised_as_the_language_that_is_written():
    plain = tokenizer("$A [SEP]")
    tokens = TwoLanguages(tokenizer_object=plain.backend_tokenizer, pad_token="[PAD]", eos_token="[SEP]")
    data = encoded(tokens=tokens)
    assert {feature["input_ids"][0] == 2 for feature in data.features} == {False}
    assert {feature["labels"][0] for feature in data.features} == {2}


def test_a_column_of_pairs_is_read_as_two_columns(tmp_path):
    pairs = [{"en": en, "de": de} for en, de in zip(PAIRS["en"], PAIRS["de"], strict=True)]
    written(tmp_path / "pairs.jsonl", id=list(range(14)), translation=pairs)
    written(tmp_path / "columns.jsonl", **PAIRS)
    found = [task(path=str(tmp_path / f"{name}.jsonl")).splits() for name in ("pairs", "columns")]
    assert [split.to_dict() for split in found[0].values()] == [split.to_dict() for split in found[1].values()]
    typed = rows(translation=pairs).cast_column("translation", datasets.Translation(["en", "de"]))
    typed.to_parquet(tmp_path / "typed.parquet")
    assert task(path=str(tmp_path / "typed.parquet")).splits()["train"].to_dict() == found[1]["train"].to_dict()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"en": ["a"] * 3, "fr": ["b"] * 3}, r"no column \['de'\]; it has \['en', 'fr'\]"),
        (
            {"en": ["a"] * 3, "de": ["b", None, "c"]},
            "column 'de', row 1 .*: None, but a text is expected; so in 1 of 3",
        ),
        (
            {"translation": [{"en": "a", "fr": "b"}] * 3},
            r"no column \['de', 'en'\]; it has \['translation.en', 'translation.fr'\]",
        ),
    ],
)
def test_what_is_no_pair_of_texts_is_named(tmp_path, columns, message):
    with pytest.raises(ValueError, match=message):
        task(path=str(written(tmp_path / "rows.jsonl", **columns))).splits()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"columns": ("en",)}, r"task.columns=\['en'\]: give two columns"),
        ({"columns": ("en", "en")}, "give two columns, of the texts and of their translations"),
        ({"beams": 0}, "task.beams=0: it must be at least 1"),
        ({"metric": "rouge"}, "unknown task.metric of a translation 'rouge'"),
        ({"prefix": 3}, "Translation needs prefix to be text, not 3"),
    ],
)
def test_a_value_that_means_nothing_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        task(**fields)


def test_a_model_that_cannot_write_is_refused():
    with pytest.raises(ValueError, match=r"decoder_start_token_id=None in config.json"):
        encoded(transformers.BertConfig())
    with pytest.raises(ValueError, match=r"task.max_new_tokens=32: the model has positions for 32 tokens"):
        encoded(max_new_tokens=32)


@pytest.fixture
def _fresh_accelerate_state():
    """A precision is that of the whole process, and other tests have theirs."""
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


@pytest.mark.usefixtures("_fresh_accelerate_state")
def test_a_translator_is_trained_packed_and_writes_the_same_when_it_is_read_back_in_the_same_precision(
    tmp_path, monkeypatch
):
    precisions, generate = set(), transformers.MarianMTModel.generate

    def spy(model, **inputs):
        precisions.add(torch.is_autocast_enabled("cpu"))
        return generate(model, **inputs)

    monkeypatch.setattr(transformers.MarianMTModel, "generate", spy)
    path = written(tmp_path / "pairs.jsonl", en=sentences(60), de=sentences(60, seed=1))
    model = seeded(transformers.MarianMTModel, MARIAN)
    model.generation_config.update(repetition_penalty=3.0, bad_words_ids=[[5]])  # of which config.json knows nothing
    given = ["task=translation", f"task.path={path}", "task.columns=[en,de]", "task.max_new_tokens=6", "task.beams=2"]
    given += ["train.precision=bf16", "train.cpu=true"]
    content, read, packed = packed_run(tmp_path, model, tokenizer("$A [SEP]"), *given)
    assert precisions == {True}
    check_reloads(task(path=str(path), max_new_tokens=6, beams=2), content, read, packed)
    assert read.generation_config.repetition_penalty == 3.0
    assert content["task"]["metric"] == "bleu"
    assert set(content["scores"]["packed"]) == {"bleu", "chrf"}
