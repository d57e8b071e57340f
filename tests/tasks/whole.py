"""A whole run of a task on a tiny random model, and what its packed model says."""

from dataclasses import replace

import hydra
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from nxmiformer.export import load_packed
from nxmiformer.jobs import compress
from nxmiformer.jobs.build import build
from nxmiformer.train.recipe import Recipe

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


def pieces(words):
    """A tokenizer of these words and pieces (##ed), of single texts and of pairs."""
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *words])}
    core = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = ["input_ids", "token_type_ids", "attention_mask"]
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", model_input_names=names
    )


def bert(kind, tokenizer, **options):
    """A BERT with such a head, seeded, in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind(
            transformers.BertConfig(
                vocab_size=len(tokenizer), max_position_embeddings=64, initializer_range=0.3, **SIZES, **options
            )
        ).eval()


def packed_run(directory, model, tokenizer, *overrides):
    """A run of two steps a phase through the whole job: the content of its report, and the packed model."""
    model.save_pretrained(directory / "model")
    tokenizer.save_pretrained(directory / "model")
    told = [
        *("name=tiny", "dense_cache=null", "model=pretrained", f"model.path={directory / 'model'}", "plan=2of4_int8"),
        "recipe.phases.admm.method.calibration=0",
        *("train.max_length=24", "train.batch_size=4", "train.evaluate_every=0", "train.cpu=true", "train.threads=1"),
    ]
    with hydra.initialize_config_module("nxmiformer.conf", version_base="1.3"):
        job = build(hydra.compose("config", [*told, *overrides]), directory / "run")
    recipe = Recipe({name: replace(phase, steps=2) for name, phase in job.recipe.phases.items()})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compress, "write_report", lambda _: None)  # whose figures take longer than all else
        content = compress.run(replace(job, recipe=recipe))
    return content, load_packed(directory / "run" / "packed"), directory / "run" / "packed"
