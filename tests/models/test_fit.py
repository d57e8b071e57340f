"""A model and its tokenizer are brought together, or refused, before anything is trained."""

import logging

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from nxmiformer.models.fit import agree, positions

SMALL = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


def words(count=20, **tokens):
    core = Tokenizer(models.WordLevel({f"w{i}": i for i in range(count)}, unk_token="w1"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=core, **tokens)


def decoder(pad=None):
    config = transformers.Qwen2Config(**SMALL, num_key_value_heads=1, pad_token_id=pad, bos_token_id=None)
    return transformers.Qwen2ForSequenceClassification(config)


def encoder(kind, positions, **more):
    return getattr(transformers, f"{kind}Model")(
        getattr(transformers, f"{kind}Config")(**{**SMALL, "max_position_embeddings": positions, **more})
    )


@pytest.mark.parametrize(
    ("pad", "tokens", "token"),
    [
        (3, {"pad_token": "w3"}, 3),
        (None, {"pad_token": "w3"}, 3),
        (4, {"pad_token": "w3"}, 3),
        (4, {}, 4),
        (None, {"eos_token": "w5"}, 5),
        (-1, {"eos_token": "w5"}, 5),
    ],
)
def test_model_and_tokenizer_pad_with_one_token(pad, tokens, token):
    model, tokenizer = decoder(pad), words(**tokens)
    agree(model, tokenizer, 16)
    assert (model.config.pad_token_id, tokenizer.pad_token_id) == (token, token)
    batch = {key: torch.tensor(rows) for key, rows in tokenizer(["w6 w7", "w8"], padding=True).items()}
    assert model(**batch).logits.shape == (2, 2)


def test_without_any_padding_token_the_remedy_is_told():
    with pytest.raises(ValueError, match=r"has a padding token: set tokenizer\.pad_token"):
        agree(decoder(), words(), 16)


def test_a_model_whose_positions_start_after_its_padding_token_keeps_it():
    model = encoder("Roberta", 34)
    agree(model, words(pad_token="w0"), 32)
    assert model.config.pad_token_id == 1


def test_a_tokenizer_with_more_words_than_the_model_is_refused():
    with pytest.raises(ValueError, match=r"21 words and the model 20: call model\.resize_token_embeddings"):
        agree(decoder(), words(21, pad_token="w0"), 16)


def gpt2():
    config = transformers.GPT2Config(vocab_size=20, n_embd=16, n_layer=1, n_head=2, n_positions=24)
    return transformers.GPT2Model(config)


def bart():
    sizes = {"d_model": 16, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 24}
    counts = {f"{side}_{what}": 1 for side in ("encoder", "decoder") for what in ("layers", "attention_heads")}
    return transformers.BartModel(transformers.BartConfig(vocab_size=20, **sizes, **counts))


def t5():
    return transformers.T5Model(
        transformers.T5Config(vocab_size=20, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, n_positions=24)
    )


def deberta(**options):
    return encoder("DebertaV2", 24, relative_attention=True, **options)


@pytest.mark.parametrize(
    ("model", "places"),
    [
        (lambda: encoder("Bert", 24), 24),
        (lambda: encoder("Roberta", 26), 24),
        (gpt2, 24),
        (bart, 24),
        (lambda: encoder("Mistral", 24, num_key_value_heads=1), 24),
        (deberta, 24),
        (lambda: deberta(position_biased_input=False), None),
        (t5, None),
    ],
)
def test_texts_longer_than_the_models_positions_are_refused_and_as_long_ones_run(model, places):
    model = model().eval()
    assert positions(model) == places
    tokenizer = words(pad_token="w1" if model.config.pad_token_id == 1 else "w0")
    agree(model, tokenizer, 24)
    inputs = {"input_ids": torch.full((1, 24), 3)}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = inputs["input_ids"]
    model(**inputs)
    if places is not None:
        with pytest.raises(ValueError, match=r"train\.max_length=25: the model has positions for 24 tokens"):
            agree(model, tokenizer, 25)


def test_a_length_that_the_tokenizer_is_not_for_is_told(caplog):
    caplog.set_level(logging.INFO, "nxmiformer")
    agree(t5(), words(pad_token="w0", model_max_length=8), 16)
    assert "train.max_length=16: the tokenizer is for 8 tokens" in caplog.text
