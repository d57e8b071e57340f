"""A language model that is pruned once, exported, and trained for a task under the support that it came with."""

import hydra
import pytest
import torch
import transformers
from languages import NARROW, seeded, sentences, tokenizer, written

from nxmiformer.export import load_packed
from nxmiformer.jobs import compress
from nxmiformer.jobs.build import build
from nxmiformer.jobs.export import export
from nxmiformer.layers.support import support_of, take_supports

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
COMMON = [
    "model=pretrained",
    "dense_cache=null",
    "train.max_length=16",
    "train.batch_size=4",
    "train.cpu=true",
    "train.threads=1",
]


def job(directory, name, *overrides):
    values = [f"name={name}", "train.evaluate_every=0", *COMMON, *overrides]
    with hydra.initialize_config_module("nxmiformer.conf", version_base="1.3"):
        return build(hydra.compose("config", values), directory / name)


def test_the_pattern_of_a_model_that_is_pruned_once_outlives_a_task_and_eight_bits(tmp_path, monkeypatch):
    monkeypatch.setattr(compress, "write_report", lambda _: None)  # whose figures take longer than all else
    seeded(transformers.BertModel, transformers.BertConfig(**NARROW, **SIZES)).save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    texts = written(tmp_path / "texts.jsonl", text=sentences(60))
    dense, phases = f"model.path={tmp_path / 'model'}", "recipe.phases"
    once = job(
        tmp_path, "sparse", "task=masked", f"task.path={texts}", dense, "recipe=prune_once", "plan=unstructured",
        f"{phases}.dense.steps=2", f"{phases}.prune_once.steps=20", "plan.weight.density=0.2",
    )  # fmt: skip
    compress.run(once)
    export(job(
        tmp_path, "export", "job=export", "format=sparse", f"path={tmp_path / 'sparse'}",
        "task=masked", f"task.path={texts}",
    ))  # fmt: skip
    rows = written(tmp_path / "rows.jsonl", text=sentences(40), label=["good", "bad"] * 20)
    task = ["task=text", f"task.path={rows}", "task.label=label"]
    teacher = job(
        tmp_path, "teacher", *task, dense, "recipe=one_shot", "plan=int8", f"{phases}.dense.steps=4",
        f"{phases}.one_shot.steps=0",
    )  # fmt: skip
    taught = compress.run(teacher)["scores"]["dense"]
    reused = job(
        tmp_path, "reused", *task, f"model.path={tmp_path / 'sparse' / 'sparse'}", "recipe=pattern_lock",
        f"model.teacher={tmp_path / 'teacher' / 'dense'}", "plan=unstructured_int8", "plan.weight.first.density=0.2",
        f"{phases}.pattern_lock.steps=3", f"{phases}.grid.steps=3",
    )  # fmt: skip
    assert compress.run(reused)["scores"]["dense"] == taught
    packed = load_packed(tmp_path / "reused" / "packed")
    stored = transformers.BertModel.from_pretrained(tmp_path / "sparse" / "sparse")
    take_supports(stored, tmp_path / "sparse" / "sparse")
    found = {name: support for name, module in stored.named_modules() if (support := support_of(module)) is not None}
    assert len(found) == 6
    for name, support in found.items():
        weight = packed.bert.get_parameter(f"{name}.weight").detach()
        assert int(support.sum()) == round(0.2 * support.numel())
        assert torch.equal(weight != 0, support & (weight != 0))
        assert weight[support].any()
        assert not weight.equal(stored.get_parameter(f"{name}.weight"))


@pytest.mark.parametrize("points", ["unstructured", "2of4"])
def test_a_model_that_stores_no_support_is_refused_before_the_first_step(tmp_path, points):
    seeded(transformers.BertModel, transformers.BertConfig(**NARROW, **SIZES)).save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    rows = written(tmp_path / "rows.jsonl", text=sentences(40), label=["good", "bad"] * 20)
    wrong = job(
        tmp_path, "wrong", "task=text", f"task.path={rows}", "task.label=label", f"model.path={tmp_path / 'model'}",
        "recipe=pattern_lock", f"plan={points}", "recipe.phases.dense.steps=1",
    )  # fmt: skip
    with pytest.raises(ValueError, match="its checkpoint stores no support to keep"):
        compress.run(wrong)
