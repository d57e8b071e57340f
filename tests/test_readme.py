"""The README's Python runs, as it stands there."""

import re
import sys
from pathlib import Path

import datasets
import pytest
import torch
import transformers
from accelerate.state import AcceleratorState

from nxmiformer import CompressionPlan, load_packed, verify
from nxmiformer.models import embedded

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
sys.path.append(str(Path(__file__).parent / "report"))
from fabricated import write_sweep  # noqa: E402 (the fabricated runs belong to the report's tests)


def test_the_python_lines_of_the_readme_run_and_leave_a_packed_model_in_its_sets(tmp_path, monkeypatch):
    code = BLOCKS[2]
    assert 8 <= len([line for line in code.splitlines() if line.strip()]) <= 18
    monkeypatch.chdir(tmp_path)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    model = transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=50, **sizes))
    model.half().save_pretrained(tmp_path / "checkpoint")
    generator = torch.Generator().manual_seed(0)
    batches = [
        {"input_ids": torch.randint(50, (4, 6), generator=generator), "labels": torch.tensor([0, 1, 0, 1])}
        for _ in range(8)
    ]
    given = {"path": tmp_path / "checkpoint", "batches": batches, "tokenizer": embedded.tokenizer(["a"])}
    exec(compile(code, str(README), "exec"), given)
    packed = next(tmp_path.glob("**/packed.json")).parent
    loaded = load_packed(packed)
    assert loaded.dtype == torch.float32
    verify(loaded, CompressionPlan.load(packed / "plan.json"))


def small(words):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    config = transformers.BertConfig(vocab_size=len(words), max_position_embeddings=128, **sizes)
    return transformers.BertForSequenceClassification(config)


@pytest.fixture
def at_hand(tmp_path, monkeypatch):
    """What the README's lines take as given."""
    monkeypatch.chdir(tmp_path)
    AcceleratorState._reset_state(True)
    tokenizer = embedded.tokenizer(["bad", "good", "very"])
    tokenizer.model_max_length = 128
    stars = [0, 1] * 40
    rows = {"text": [f"{'very ' * (i % 3)}{('bad', 'good')[star]}" for i, star in enumerate(stars)], "stars": stars}
    yield {"tokenizer": tokenizer, "train_data": datasets.Dataset.from_dict(rows), "model": small(tokenizer)}
    AcceleratorState._reset_state(True)


def test_the_python_lines_about_one_call_compress_a_model(at_hand, capsys):
    code = BLOCKS[0].replace("steps=200", "steps=4")
    code = code.replace('"recipe.phases.admm.steps=4"', '"recipe.phases.admm.steps=4", "recipe.phases.finish.steps=2"')
    exec(compile(code, str(README), "exec"), at_hand)
    verify(at_hand["model"], at_hand["result"].plan)
    verify(load_packed("compressed/packed"), at_hand["result"].plan)
    assert "packed accuracy" in capsys.readouterr().out


def test_the_python_lines_about_a_trainer_compress_a_model(at_hand):
    model, tokenizer = at_hand["model"], at_hand["tokenizer"]
    rows = [{**tokenizer("very good"), "labels": 1}, {**tokenizer("bad"), "labels": 0}] * 4
    arguments = transformers.TrainingArguments("out", use_cpu=True, report_to="none", max_steps=2, disable_tqdm=True)
    collator = transformers.DataCollatorWithPadding(tokenizer)
    trainer = transformers.Trainer(model, arguments, train_dataset=rows, data_collator=collator)
    exec(compile(BLOCKS[1], str(README), "exec"), {**at_hand, "trainer": trainer})
    verify(load_packed("packed"), CompressionPlan.load("packed/plan.json"))


def test_the_python_lines_about_many_runs_read_them_and_draw_them(tmp_path, monkeypatch):
    code = BLOCKS[3]
    write_sweep(tmp_path / "multirun", seeds=2)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(code, str(README), "exec"), names)
    assert len(names["runs"]) == len(set(names["curves"].directory)) == 24
    for figure in ("comparison.png", "frontier.png"):
        assert (tmp_path / figure).read_bytes().startswith(b"\x89PNG")
