"""Whether a model and its tokenizer fit: words, padding, and the number of positions."""

import logging

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)


def agree(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
    """Make the model pad as its tokenizer does; what is done is logged.

    Raises:
        ValueError: the tokenizer has more words than the model, neither has a padding token, or the model has fewer
            than `max_length` positions.
    """
    words = getattr(model.config.get_text_config(), "vocab_size", None)
    if words is not None and len(tokenizer) > words:
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} words and the model {words}: call "
            "model.resize_token_embeddings(len(tokenizer)) and save both"
        )
    _agree_on_padding(model, tokenizer)
    places = positions(model)
    if places is not None and max_length > places:
        raise ValueError(f"train.max_length={max_length}: the model has positions for {places} tokens, give no more")
    if max_length > tokenizer.model_max_length:
        log.info("train.max_length=%d: the tokenizer is for %d tokens", max_length, tokenizer.model_max_length)


def _agree_on_padding(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """The tokenizer's padding token becomes the model's. If it has none, it takes the model's, or the end-of-text
    token. Users of decoders do the same, as their classifiers look for the last token that is not padding."""
    config = model.config.get_text_config()
    theirs = getattr(config, "pad_token_id", None)
    if tokenizer.pad_token_id is None:
        known = isinstance(theirs, int) and 0 <= theirs < len(tokenizer)
        token = tokenizer.convert_ids_to_tokens(int(theirs or 0)) if known else tokenizer.eos_token
        if token is None:
            raise ValueError(
                "neither the tokenizer nor the model has a padding token: set tokenizer.pad_token, and save the "
                "tokenizer beside the model"
            )
        tokenizer.pad_token = token
        log.info("the tokenizer has no padding token: %r is used", token)
    if theirs != tokenizer.pad_token_id and not any(table.padding_idx is not None for table in _tables(model)):
        for each in (model.config, config):
            each.pad_token_id = tokenizer.pad_token_id
        log.info("pad_token_id=%s in config.json: it becomes the tokenizer's, %r", theirs, tokenizer.pad_token)


def positions(model: PreTrainedModel) -> int | None:
    """The model's number of positions; None if positions are relative, and any number fits."""
    config, tables = model.config.get_text_config(), _tables(model)
    told = getattr(config, "max_position_embeddings", None)
    relative = getattr(config, "relative_attention", False) or getattr(config, "relative_attention_num_buckets", 0)
    limits = [] if told is None or told < 1 or (relative and not tables) else [told]
    # Where there is a token of padding among the positions (RoBERTa), those of a text begin after it.
    first = [getattr(t, "offset", 0) if t.padding_idx is None else t.padding_idx + 1 for t in tables]
    limits += [table.num_embeddings - start for table, start in zip(tables, first, strict=True)]
    return min(limits, default=None)


def _tables(model: PreTrainedModel) -> list[nn.Embedding]:
    """The tables of absolute positions of a text."""
    names = ("position_embeddings", "positions_embed", "embed_positions", "wpe", "char_position_embeddings")
    found = {name: module for name, module in model.named_modules() if isinstance(module, nn.Embedding)}
    return [module for name, module in found.items() if name.rpartition(".")[2] in names]
