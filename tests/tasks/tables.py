"""Tables of a few rows, and a model and a tokenizer that are small enough to train on them."""

import json

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

WORDS = ["the", "a", "good", "bad", "film", "book", "was", "very", "not", "boring", "great", "dull", "old", "new", "it"]
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
ROWS = 24


def texts(count=ROWS):
    """Different texts of different lengths."""
    return [" ".join(WORDS[(i * step) % len(WORDS)] for step in range(1, 3 + i % 9)) for i in range(count)]


def write_csv(path, columns, sep=","):
    """A CSV file of these columns by name; of values that are texts, each in quotes."""
    shown = [
        [f'"{value}"' if isinstance(value, str) else str(value) for value in column] for column in columns.values()
    ]
    lines = [sep.join(columns), *(sep.join(row) for row in zip(*shown, strict=True))]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def write_jsonl(path, columns):
    rows = (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def tokenizer():
    """One token a word, in BERT's format."""
    words = {word: place for place, word in enumerate((*SPECIAL, *WORDS))}
    core = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("[CLS]", words["[CLS]"]), ("[SEP]", words["[SEP]"])]
    core.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", ends)
    named = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=core, model_max_length=32, **named)


def config(**options):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    words = {"vocab_size": len(SPECIAL) + len(WORDS), "max_position_embeddings": 32, "pad_token_id": 0}
    return transformers.BertConfig(**sizes, **words, **options)


def checkpoint(directory):
    """A randomly drawn encoder without a head, and its tokenizer, as a directory."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.BertModel(config()).save_pretrained(directory)
    tokenizer().save_pretrained(directory)
    return str(directory)
