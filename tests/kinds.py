"""Tiny random models of the kinds whose every product is quantized."""

import torch
import transformers

NARROW = {
    "vocab_size": 24,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
SIDES = {f"{side}_{part}": n for side in ("encoder", "decoder") for part, n in (("layers", 1), ("attention_heads", 2))}
FEED = {"encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "d_model": 16, "vocab_size": 24, "max_position_embeddings": 16}
TOKENS = {"pad_token_id": 0, "eos_token_id": 1}


def bert():
    return transformers.BertForSequenceClassification(transformers.BertConfig(**NARROW, max_position_embeddings=16))


def gpt2():
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16, "vocab_size": 24}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **TOKENS, bos_token_id=1))


def llama():
    config = transformers.LlamaConfig(**NARROW, **TOKENS, bos_token_id=1, num_key_value_heads=1)
    return transformers.LlamaForCausalLM(config)


def marian():
    config = transformers.MarianConfig(**SIDES, **FEED, **TOKENS, decoder_start_token_id=0)
    return transformers.MarianMTModel(config)


KINDS = {make.__name__: make for make in (bert, gpt2, llama, marian)}


def made(kind):
    """A model of the kind, in training mode, without dropout: so that two passes are alike."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = KINDS[kind]()
    for module in model.modules():
        for key in ("dropout", "attention_dropout", "activation_dropout"):
            if isinstance(vars(module).get(key), float):
                setattr(module, key, 0.0)
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model.train()


def batch(kind, seed=0, junk=2):
    """Texts, the ends of which are padding: `junk` is the token that stands there."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 24, (3, 6), generator=draw)
    mask = torch.ones_like(ids)
    mask[0, 4:] = mask[1, 5:] = 0
    given = {"input_ids": torch.where(mask == 1, ids, junk), "attention_mask": mask}
    if kind == "marian":
        written = torch.randint(3, 24, (3, 5), generator=draw)
        labels = written.masked_fill(torch.arange(5) > torch.tensor([[2], [4], [3]]), -100)
        given |= {"decoder_input_ids": written.masked_fill(labels == -100, junk), "labels": labels}
    return given
