import pytest
import torch
import transformers

from nxmiformer.layers.examples import made_up

SIZES = {"vocab_size": 40, "num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 16}
TWO_SIDED = {"vocab_size": 40, "d_model": 16, "num_labels": 2, "pad_token_id": 0, "eos_token_id": 2}
HALVES = {f"{side}_{part}": 2 for side in ("encoder", "decoder") for part in ("layers", "attention_heads")}
FEED = {"encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "bos_token_id": 1, "decoder_start_token_id": 2}


def bert():
    return transformers.BertForSequenceClassification(transformers.BertConfig(**SIZES))


def roberta():
    return transformers.RobertaForSequenceClassification(transformers.RobertaConfig(**SIZES))


def bart():
    return transformers.BartForSequenceClassification(transformers.BartConfig(**TWO_SIDED, **HALVES, **FEED))


def t5():
    config = transformers.T5Config(**TWO_SIDED, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0)
    return transformers.T5ForSequenceClassification(config)


def gpt2():
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
    config = transformers.GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2, **tokens)
    return transformers.GPT2ForSequenceClassification(config)


@pytest.mark.parametrize("make", [bert, roberta, bart, t5, gpt2], ids=lambda make: make.__name__)
def test_made_up_inputs_are_accepted_and_hold_no_token_that_means_something_but_an_end(make):
    model = make().eval()
    inputs = made_up(model, 3, 7)
    assert inputs["input_ids"].shape == (3, 7)
    with torch.no_grad():
        assert model(**inputs).logits.shape == (3, 2)
    assert (inputs["input_ids"] != model.config.pad_token_id).all()
    ends = torch.isin(inputs["input_ids"], torch.tensor(model.config.eos_token_id or [])).sum(1)
    assert (ends == int(model.config.is_encoder_decoder)).all()
    again = made_up(model, 3, 7)
    assert all(torch.equal(tensor, again[name]) for name, tensor in inputs.items())
