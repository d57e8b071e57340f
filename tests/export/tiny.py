"""Tiny random models, compressed, and what two of them have in common."""

import torch
import transformers

from nxmiformer.applied.convert import convert
from nxmiformer.layers.projection import project
from nxmiformer.layers.targets import find_targets
from nxmiformer.plan.compression import CompressionPlan
from nxmiformer.sets import NM, Grid, Then

JOINT = Then(NM(2, 4), Grid(4))
WEIGHTS, PLAN, MANIFEST, CONFIG, CARD = "model.safetensors", "plan.json", "packed.json", "config.json", "README.md"
WORDS = {"vocab_size": 24, "max_position_embeddings": 16, "num_labels": 3}
NARROW = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def bert(**options):
    return transformers.BertForSequenceClassification(transformers.BertConfig(**WORDS, **NARROW, **options))


def roberta():
    return transformers.RobertaForSequenceClassification(transformers.RobertaConfig(**WORDS, **NARROW))


def distilbert():
    sizes = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32}
    return transformers.DistilBertForSequenceClassification(transformers.DistilBertConfig(**WORDS, **sizes))


def gpt2():
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16, "vocab_size": 24, "num_labels": 3}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
    return transformers.GPT2ForSequenceClassification(transformers.GPT2Config(**sizes, **tokens))


def tied():
    """Its head and its embedding are one weight, and so, by hand, are two of its linears and two of its biases."""
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16, "vocab_size": 24}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, bos_token_id=1, eos_token_id=1))
    first, second = model.transformer.h
    second.mlp.c_fc.weight, second.ln_1.bias = first.mlp.c_fc.weight, first.ln_1.bias
    return model


def llama():
    tokens = {"vocab_size": 24, "max_position_embeddings": 16, "bos_token_id": 1, "eos_token_id": 1}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**NARROW, **tokens, num_key_value_heads=1))


MODELS = [bert, roberta, distilbert, gpt2, tied, llama]


def seeded(make, seed=0, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make(**options)


def compressed(make=bert, weight=JOINT, activations=None, dtype=torch.float32, include=None):
    """A model whose compressed weights are points of their sets, and its plan."""
    model = seeded(make).to(dtype).requires_grad_(dtype.itemsize > 2)  # who trains in 16 bits is warned
    targets = find_targets(model, include)
    sets = weight(targets.layers) if callable(weight) else {target.name: weight for target in targets.layers}
    plan = CompressionPlan.assigned(model, targets, sets, activations)
    convert(model, plan)
    project(model)
    return model.eval(), plan


@torch.no_grad()
def logits(model):
    return model(input_ids=torch.tensor([[1, 2, 3, 4, 5], [6, 7, 8, 9, 2]])).logits


def same_bits(a, b):
    return a.dtype == b.dtype and torch.equal(*(t.contiguous().flatten().view(torch.uint8) for t in (a, b)))


def contents(directory):
    return {file.name: file.read_bytes() for file in directory.iterdir()}
