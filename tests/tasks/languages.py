"""A tiny language of its own: its texts, its tokenizer, and what the three tasks of language models are held to."""

import json
import random

import datasets
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from nxmiformer.tasks.batches import sorted_batches
from nxmiformer.train.evaluate import Answers, looks

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = tuple("abcdefghijklmnopqrstuvw")
NARROW = {"vocab_size": 28, "max_position_embeddings": 32}


def tokenizer(frame="[CLS] $A [SEP]", **options):
    """A word a token; the special tokens are numbered from 0."""
    words = {word: number for number, word in enumerate((*SPECIAL, *WORDS))}
    core = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single=frame, special_tokens=[("[CLS]", 2), ("[SEP]", 3)] if frame != "$A" else []
    )
    named = {"pad_token": "[PAD]", "unk_token": "[UNK]", "sep_token": "[SEP]", "eos_token": "[SEP]"}
    named |= {"cls_token": "[CLS]", "mask_token": "[MASK]", **options}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=core, model_max_length=32, **named)


def sentences(count, seed=0, longest=12):
    chance = random.Random(seed)
    return [" ".join(chance.choices(WORDS, k=chance.randint(2, longest))) for _ in range(count)]


def rows(**columns):
    return datasets.Dataset.from_dict(columns)


def written(path, **columns):
    """The columns as a file of JSON lines."""
    lines = [json.dumps(dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)]
    path.write_text("\n".join(lines) + "\n")
    return path


def seeded(make, config):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make(config).eval()


def loss_apart(task, model, examples):
    """How far the cross-entropy of the units of all examples, in one batch, is from the model's own loss."""
    batch = examples.batch(range(len(examples)), "cpu")
    with torch.no_grad():
        units, own = task.units(model(**task.inputs(batch)), batch), model(**batch).loss
    return abs(units.outcome.losses(units.logits, units.targets).mean().item() - own.item())


def units_of(task, model, examples, size):
    """The logits of each example's units, in the order of examples, and the answers to all."""
    found, answers = {}, Answers(task, examples)
    for look in looks(lambda inputs: model(**inputs), task, examples, size, "cpu"):
        answers.add(look)
        for place, index in enumerate(look[0]):
            found[index] = look[2].logits[look[2].owner == place]
    return [found[index] for index in range(len(examples))], answers.all


def check_batches_do_not_matter(task, model, examples):
    """Neither the size of a batch nor how wide it is padded changes logits beyond rounding, or an answer."""
    assert len(set(examples.lengths())) > 2
    alone, answers = units_of(task, model, examples, 1)
    for size in (3, len(examples)):
        together, others = units_of(task, model, examples, size)
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close([list(each) for each in others], [list(each) for each in answers])
    assert len(sorted_batches(examples, 3)) > 2
    return answers


def check_reloads(task, content, model, path):
    """The packed model, read again, scores as the trained one did, with whose logits its run has compared it."""
    assert content["scores"]["packed"] == content["scores"]["final"]
    tokens = transformers.AutoTokenizer.from_pretrained(path)
    examples = task.encode(task.splits()["validation"], tokens, 24, model.config)
    answers = Answers(task, examples, model)
    for look in looks(lambda inputs: model(**inputs), task, examples, 64, "cpu"):
        answers.add(look)
    assert answers.score() == content["scores"]["packed"]
