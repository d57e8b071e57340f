"""A checkpoint that is trained for the very task is compressed from where it is."""

import dataclasses

import pytest
import torch
from safetensors.torch import load_file
from test_job import job

from nxmiformer.export.packed import load_packed
from nxmiformer.jobs.compress import run
from nxmiformer.models.source import Embedded, Pretrained
from nxmiformer.tasks.grammar import Grammar

SIZES = {"hidden": 32, "heads": 2, "intermediate": 64, "layers": 1}


def saved(directory, headless=False):
    """The embedded model as a checkpoint."""
    source, task = Embedded(**SIZES), Grammar()
    tokenizer = source.tokenizer(task)
    model = source.model(task, tokenizer, 7)
    (model.base_model if headless else model).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return model


def of(built, path, **options):
    """The job with a checkpoint for its model."""
    return dataclasses.replace(built, source=Pretrained(str(path), **options))


def test_a_finetuned_model_is_the_dense_model(tmp_path):
    model = saved(tmp_path / "saved")
    built = of(job(tmp_path / "run"), tmp_path / "saved", finetuned=True)
    content = run(built)
    assert content["phases"]["dense"]["steps"] == 0
    assert content["phases"]["admm"]["steps"] > 0
    dense = load_file(tmp_path / "run" / "dense" / "model.safetensors")
    assert all(torch.equal(dense[name], weight) for name, weight in model.state_dict().items())


def test_a_finetuned_model_without_a_head_is_refused(tmp_path):
    saved(tmp_path / "saved", headless=True)
    with pytest.raises(ValueError, match=r"model\.finetuned=true: .*saved has no BertForSequenceClassification"):
        run(of(job(tmp_path / "run"), tmp_path / "saved", finetuned=True))


def test_a_model_is_trained_and_packed_in_the_dtype_that_is_asked_for(tmp_path):
    saved(tmp_path / "saved")
    with pytest.warns(UserWarning, match="weights that want gradients are of 16 bits"):
        content = run(of(job(tmp_path / "run"), tmp_path / "saved", dtype="bfloat16"))
    assert content["scores"]["packed"] == content["scores"]["final"]
    assert load_packed(tmp_path / "run" / "packed").dtype == torch.bfloat16


def test_an_unknown_dtype_is_answered_with_the_nearest(tmp_path):
    with pytest.raises(ValueError, match=r"unknown model\.dtype 'bfloat': did you mean bfloat16"):
        Pretrained(str(tmp_path), dtype="bfloat")


def test_the_revision_is_asked_of_the_hub(tmp_path, monkeypatch):
    asked = []

    def refuse(path, *, revision, **_):
        asked.append((path, revision))
        raise OSError

    for name in ("AutoTokenizer", "AutoConfig"):
        monkeypatch.setattr(f"nxmiformer.models.source.{name}.from_pretrained", refuse)
    source = Pretrained("someone/model", revision="v2")
    for ask in (lambda: source.tokenizer(Grammar()), lambda: source.model(Grammar(), None, 0)):
        with pytest.raises(OSError, match=r"^$"):
            ask()
    assert asked == [("someone/model", "v2")] * 2
