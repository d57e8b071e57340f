"""Models of a few hundred weights, converted, and batches for them: what a search looks at, within milliseconds."""

import numpy as np
import torch
import transformers

from nxmiformer.applied.convert import convert
from nxmiformer.layers.targets import find_targets
from nxmiformer.plan.compression import CompressionPlan
from nxmiformer.search.evidence import Evidence
from nxmiformer.sets import NM
from nxmiformer.tasks.units import whole_units

SIZES = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
WORDS = {"vocab_size": 20, "pad_token_id": 0, "initializer_range": 0.2}


def bert(outputs=3):
    return transformers.BertForSequenceClassification(
        transformers.BertConfig(hidden_size=16, num_labels=outputs, **SIZES, **WORDS)
    )


def shared():
    """A BERT two of whose layers have one weight."""
    model = bert()
    first, second = (block.attention.output.dense for block in model.bert.encoder.layer)
    second.weight = first.weight
    return model


def distilbert():
    config = transformers.DistilBertConfig(dim=16, n_layers=2, n_heads=2, hidden_dim=32, **WORDS)
    return transformers.DistilBertForSequenceClassification(config)


def gpt2():
    tokens = {"bos_token_id": 1, "eos_token_id": 1}
    config = transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, num_labels=3, **WORDS, **tokens)
    return transformers.GPT2ForSequenceClassification(config)


MODELS = {"bert": bert, "regression": lambda: bert(1), "shared": shared, "gpt2": gpt2}


def examples(count, outputs):
    """Single examples of 3 to 8 tokens, none of them padding."""
    generator = torch.Generator().manual_seed(1)
    found = []
    for _ in range(count):
        length = int(torch.randint(3, 9, (1,), generator=generator))
        label = (
            torch.randn(1, generator=generator) if outputs == 1 else torch.randint(outputs, (1,), generator=generator)
        )
        ids = torch.randint(2, 20, (1, length), generator=generator)
        found.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": label})
    return found


def padded(some):
    """Single examples as one batch."""
    width = max(each["input_ids"].shape[1] for each in some)
    keys = ("input_ids", "attention_mask")
    rows = {
        key: torch.cat([torch.nn.functional.pad(each[key], (0, width - each[key].shape[1])) for each in some])
        for key in keys
    }
    return {**rows, "labels": torch.cat([each["labels"] for each in some])}


def nothing_constrained(model):
    """The model, converted to a plan that every weight is in."""
    return convert(model, CompressionPlan.uniform(model, find_targets(model), NM(1, 1)))


def logits(model, batch):
    return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits


def units(model, batch):
    return whole_units({"logits": logits(model, batch)}, batch)


def score(units, batches, truths):
    rows, labels = (torch.cat([getattr(each, part).cpu() for each in units]).numpy() for part in ("logits", "targets"))
    assert labels.tolist() == list(truths)
    return accuracy(rows, labels)


def accuracy(logits, labels):
    return (
        float(np.mean(logits.argmax(-1) == labels)) if logits.shape[-1] > 1 else -float(np.var(logits[:, 0] - labels))
    )


def evidence(kind="bert", count=18, size=7):
    """Evidence on a random model, in training mode as a run leaves it, and its examples in batches of `size`."""
    torch.manual_seed(0)
    model = nothing_constrained(MODELS[kind]()).train()
    some = examples(count, model.config.num_labels)
    batches = [padded(some[start : start + size]) for start in range(0, count, size)]
    truths = [batch["labels"].tolist() for batch in batches]
    return Evidence(model, batches, lambda batch: units(model, batch), truths, score)


def separate(evidence):
    """The examples of the evidence one by one, without padding."""
    for batch in evidence.batches:
        for ids, mask, label in zip(*(batch[key] for key in ("input_ids", "attention_mask", "labels")), strict=True):
            real = mask.bool()
            yield {"input_ids": ids[real][None], "attention_mask": mask[real][None], "labels": label[None]}
