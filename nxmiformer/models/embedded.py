"""A small BERT and its word tokenizer for the embedded task: both are built from nothing, without a download."""

from collections.abc import Sequence

import tokenizers
import torch
import transformers
from tokenizers import models, normalizers, pre_tokenizers, processors

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
LENGTH = 64


def tokenizer(vocabulary: Sequence[str]) -> transformers.PreTrainedTokenizerFast:
    """A lower-casing tokenizer with one token per word, in BERT's format ([CLS] a [SEP] b [SEP], token types 0 and 1).

    Args:
        vocabulary: the words in lower case; the special tokens come before them.

    Raises:
        ValueError: a word occurs twice, has a capital, or is a special token.
    """
    words = [*SPECIAL, *vocabulary]
    if len(set(words)) != len(words) or any(word != word.lower() for word in vocabulary):
        raise ValueError("the vocabulary must consist of different lower-case words")
    index = {word: position for position, word in enumerate(words)}
    core = tokenizers.Tokenizer(models.WordLevel(index, unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, index[token]) for token in ("[CLS]", "[SEP]")],
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core,
        model_max_length=LENGTH,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **{f"{token[1:-1].lower()}_token": token for token in SPECIAL},
    )


def model(
    tokenizer: transformers.PreTrainedTokenizerBase,
    outputs: int,
    *,
    seed: int,
    hidden: int = 64,
    layers: int = 3,
    heads: int = 2,
    intermediate: int = 256,
) -> transformers.BertForSequenceClassification:
    """A BERT without dropout, in PyTorch's default type (float32); the global generator is left as it was.

    Args:
        tokenizer: gives the number of words and the padding token.
        outputs: number of outputs, one per class.
        seed: seed of the weights.
        hidden: width of the residual stream.
        layers: number of encoder layers.
        heads: number of attention heads; divides `hidden`.
        intermediate: width between the two linears of the feed-forward part.

    Raises:
        ValueError: `heads` does not divide `hidden`.
    """
    config = transformers.BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=intermediate,
        max_position_embeddings=LENGTH,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        # BERT's 0.02 is meant for a width of 768; so narrow a model learns from scratch only with larger weights.
        initializer_range=0.08,
        pad_token_id=tokenizer.pad_token_id,
    )
    config.num_labels = outputs
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would set those of other devices too
        bert: transformers.BertForSequenceClassification = transformers.BertForSequenceClassification(config)
    weights = dict(bert.named_parameters())
    with torch.no_grad():
        for name, key in weights.items():
            # Equal query and key weights let a word attend to its own repetition from the start (the diagonal of
            # mimetic initialisation, Trockman and Kolter 2023, arXiv 2305.09828): pairs are compared much sooner.
            if name.endswith(".key.weight"):
                key.copy_(weights[name.replace(".key.", ".query.")])
    return bert
