"""Models with only some of their layers."""

import pytest
import torch
import transformers

from nxmiformer.models.shallow import shallow
from nxmiformer.models.source import Pretrained

SMALL = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 16}
MODELS = {
    "bert": lambda: transformers.BertForSequenceClassification(transformers.BertConfig(**SMALL)),
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL, tie_word_embeddings=True)),
    "qwen2": lambda: transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**SMALL, num_key_value_heads=1)),
    "gpt2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=20, n_embd=8, n_layer=4, n_head=2, n_positions=16)
    ),
}
STACKS = {"bert": "bert.encoder.layer", "llama": "model.layers", "qwen2": "model.layers", "gpt2": "transformer.h"}


@pytest.mark.parametrize("kind", MODELS)
def test_what_is_left_computes_as_the_model_does_whose_other_layers_are_stepped_over(kind):
    torch.manual_seed(0)
    model, tokens = MODELS[kind]().eval(), torch.randint(20, (2, 5), device="cpu")
    smaller = shallow(model, [0, 3])
    assert smaller.config.num_hidden_layers == 2
    assert not smaller.training
    stack = model.get_submodule(STACKS[kind])
    with torch.no_grad():
        ours = smaller(tokens).logits
        for number in (1, 2):
            stack[number].forward = lambda hidden, *_, **__: hidden
        theirs = model(tokens, **({} if kind == "bert" else {"use_cache": False})).logits
    assert ours.equal(theirs if isinstance(theirs, torch.Tensor) else theirs[0])


def test_a_decoder_of_fewer_layers_writes_with_its_cache_as_without():
    torch.manual_seed(0)
    model, tokens = shallow(MODELS["llama"]().eval(), [1, 3]), torch.randint(20, (1, 4), device="cpu")
    written = [model.generate(tokens, max_new_tokens=5, do_sample=False, use_cache=cache) for cache in (True, False)]
    assert written[0].equal(written[1])


@pytest.mark.parametrize("kept", [[], [0, 0], [2, 1], [-1, 0], [0, 4]])
def test_numbers_that_are_none_of_layers_are_refused(kept):
    with pytest.raises(ValueError, match="numbers from 0 to 3 that rise"):
        shallow(MODELS["bert"](), kept)


def test_two_stacks_and_layers_that_are_one_and_the_same_are_refused():
    t5 = transformers.T5ForConditionalGeneration(
        transformers.T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=16, num_layers=2, num_heads=2)
    )
    with pytest.raises(ValueError, match="two stacks"):
        shallow(t5, [0])
    albert = transformers.AlbertModel(transformers.AlbertConfig(**SMALL, embedding_size=8))
    with pytest.raises(ValueError, match="has 0 lists of 4 modules"):
        shallow(albert, [0])


def test_a_layer_that_would_be_of_another_kind_in_its_new_place_is_refused():
    config = transformers.GPTNeoConfig(
        vocab_size=20, hidden_size=8, num_layers=4, num_heads=2, attention_types=[[["global", "local"], 2]]
    )
    with pytest.raises(ValueError, match="layer 1 of a GPTNeoForCausalLM is of another kind than layer 0 would be"):
        shallow(transformers.GPTNeoForCausalLM(config), [1, 2])


def test_layers_are_dropped_of_a_model_that_is_still_to_be_trained():
    with pytest.raises(ValueError, match=r"model\.finetuned=true takes no dense step"):
        Pretrained("bert-base-uncased", finetuned=True, keep_layers=[0, 1])
