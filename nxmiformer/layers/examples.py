"""Inputs that a model takes, and made-up ones that it accepts."""

import inspect

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

INPUTS = ("input_ids", "attention_mask", "token_type_ids", "decoder_input_ids")
SPECIAL = ("pad", "bos", "eos", "cls", "sep", "mask", "unk", "decoder_start")


def inputs_of(model: PreTrainedModel) -> tuple[str, ...]:
    """The names of the graph's inputs, without token types if the model has none."""
    taken = inspect.signature(model.forward).parameters
    taught = bool(model.config.is_encoder_decoder) and model.can_generate()  # a decoder that is told what came before
    one_type = getattr(model.config, "type_vocab_size", 0) < 2  # GPT-2, which has no such count, takes types for tokens
    left_out = {"token_type_ids": one_type, "decoder_input_ids": not taught}
    return tuple(name for name in INPUTS if name in taken and not left_out.get(name, False))


def made_up(model: PreTrainedModel, batch: int, length: int) -> dict[str, Tensor]:
    """Inputs (batch, length) by name, on the CPU: ordinary words at random, the same in each call, none of them masked.

    A model that reads its answer off the end of the text has an end in each row, and no other.
    """
    draw, config = torch.Generator().manual_seed(0), model.config.get_text_config()
    words = torch.tensor([token for token in range(config.vocab_size) if token not in _special(config)], device="cpu")
    ids = words[torch.randint(len(words), (batch, length), generator=draw, device="cpu")]
    if model.config.is_encoder_decoder and isinstance(config.eos_token_id, int):
        ids[:, -1] = config.eos_token_id
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "decoder_input_ids": ids}
    return {name: given.get(name, torch.zeros_like(ids)) for name in inputs_of(model)}


def _special(config: PretrainedConfig) -> set[int]:
    """The tokens that mean something to a model; none where nothing else would be left."""
    named = [getattr(config, f"{name}_token_id", None) for name in SPECIAL]
    found = {token for each in named for token in (each if isinstance(each, list) else [each]) if token is not None}
    return found if len(found) < config.vocab_size else set()
