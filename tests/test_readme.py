"""The Python of the README and of the documentation runs, as it stands there."""

import re
import runpy
import shutil
import sys
from pathlib import Path

import datasets
import pandas as pd
import pytest
import torch
import transformers
from accelerate.state import AcceleratorState
from matplotlib.figure import Figure

from nxmiformer import CompressionPlan, load_packed, verify
from nxmiformer.models import embedded
from nxmiformer.runs.speeds import best, read_bench

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"


def blocks(path):
    return re.findall(r"```python\n(.*?)```", (ROOT / path).read_text(encoding="utf-8"), flags=re.DOTALL)


sys.path.append(str(Path(__file__).parent / "report"))
from fabricated import write_sweep  # noqa: E402 (the fabricated runs belong to the report's tests)


def test_the_python_lines_about_a_loop_of_ones_own_leave_a_packed_model_in_its_sets(tmp_path, monkeypatch):
    code = blocks("docs/python.md")[2]
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
    exec(compile(code, "docs/python.md", "exec"), given)
    packed = next(tmp_path.glob("**/packed.json")).parent
    loaded = load_packed(packed)
    assert loaded.dtype == torch.float32
    verify(loaded, CompressionPlan.load(packed / "plan.json"))


def test_the_numbers_of_the_prose_are_those_of_committed_results():
    text = " ".join(README.read_text(encoding="utf-8").split())
    uniform = pd.read_csv(ROOT / "experiments" / "glue_uniform" / "results.csv")
    tasks = uniform[uniform.task.isin(["stsb", "mrpc", "sst2"])]
    dense = tasks[tasks.method == "dense_more"].copy()
    dense["kept"] = dense.dense_score / dense[["dense_score", "score"]].max(axis=1)
    assert (
        f"the dense models themselves retain {dense.groupby('task').kept.mean().mean():.1%}".replace("%", " %") in text
    )
    (whole,) = uniform[(uniform.plan == "2of4_int4_whole") & (uniform.method == "admm")].retention
    assert f"{100 * whole:.1f} % of STS-B is retained (one seed)" in text
    size = pd.read_csv(ROOT / "experiments" / "size" / "results.csv").set_index(["linears", "embeddings", "head"]).ratio
    assert size["2:4c+int4", "int4", "int4"] > 9
    assert "a ninth" in text
    bench = read_bench(ROOT / "experiments" / "bench")
    assert f"{best(bench).ratio:.1f} times as fast" in text


def small(words):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    config = transformers.BertConfig(vocab_size=len(words), max_position_embeddings=128, **sizes)
    return transformers.BertForSequenceClassification(config)


@pytest.fixture
def at_hand(tmp_path, monkeypatch):
    """What the lines take as given."""
    monkeypatch.chdir(tmp_path)
    AcceleratorState._reset_state(True)
    tokenizer = embedded.tokenizer(["bad", "good", "very"])
    tokenizer.model_max_length = 128
    stars = [0, 1] * 40
    rows = {"text": [f"{'very ' * (i % 3)}{('bad', 'good')[star]}" for i, star in enumerate(stars)], "stars": stars}
    yield {"tokenizer": tokenizer, "train_data": datasets.Dataset.from_dict(rows), "model": small(tokenizer)}
    AcceleratorState._reset_state(True)


@pytest.mark.parametrize("path", ["README.md", "docs/python.md"])
def test_the_python_lines_about_one_call_compress_a_model(path, at_hand, capsys):
    code = re.sub(r"    overrides=.*\n", "", blocks(path)[0])
    few = ["train.batch_size=16", "recipe.phases.admm.steps=4", "recipe.phases.finish.steps=2"]
    code = code.replace('directory="compressed",', f'directory="compressed", overrides={few},')
    exec(compile(code, path, "exec"), at_hand)
    verify(at_hand["model"], at_hand["result"].plan)
    verify(load_packed("compressed/packed"), at_hand["result"].plan)
    assert "packed accuracy" in capsys.readouterr().out


def test_the_python_lines_about_a_trainer_compress_a_model(at_hand):
    model, tokenizer = at_hand["model"], at_hand["tokenizer"]
    rows = [{**tokenizer("very good"), "labels": 1}, {**tokenizer("bad"), "labels": 0}] * 4
    arguments = transformers.TrainingArguments("out", use_cpu=True, report_to="none", max_steps=2, disable_tqdm=True)
    collator = transformers.DataCollatorWithPadding(tokenizer)
    trainer = transformers.Trainer(model, arguments, train_dataset=rows, data_collator=collator)
    exec(compile(blocks("docs/python.md")[1], "docs/python.md", "exec"), {**at_hand, "trainer": trainer})
    verify(load_packed("packed"), CompressionPlan.load("packed/plan.json"))


def test_the_python_lines_about_many_runs_read_them_and_draw_them(tmp_path, monkeypatch):
    code = blocks("docs/runs.md")[0]
    write_sweep(tmp_path / "multirun", seeds=2)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(code, "docs/runs.md", "exec"), names)
    assert len(names["runs"]) == len(set(names["curves"].directory)) == 24
    for figure in ("comparison.png", "frontier.png"):
        assert (tmp_path / figure).read_bytes().startswith(b"\x89PNG")


def test_the_readme_is_short_and_has_one_figure_and_ten_lines_of_python():
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 120
    assert len(re.findall(r"!\[", text)) == 1
    (code,) = blocks("README.md")
    assert len([line for line in code.splitlines() if line.strip()]) <= 14


TABLES = {"glue_uniform": "glue_uniform/figure.py", "glue_search": "glue_search/figure.py"}
TABLES |= dict.fromkeys(["ablation", "obert", "group_lasso", "fullyqt", "kronecker", "on_the_loss"], "table.py")
TABLES |= {"prune_once": "prune_once/table.py", "seven": "seven/figure.py", "movement": "movement/figure.py"}


@pytest.mark.parametrize("study", TABLES)
def test_the_tables_of_a_study_and_of_the_readme_are_those_of_the_committed_results(study, tmp_path, monkeypatch):
    shutil.copytree(ROOT / "experiments", tmp_path / "experiments", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(README, tmp_path)
    monkeypatch.setattr(Figure, "savefig", lambda *words, **options: None)
    monkeypatch.setattr(sys, "argv", ["table.py", study])
    runpy.run_path(str(tmp_path / "experiments" / TABLES[study]), run_name="__main__")
    for path in ("README.md", f"experiments/{study}/README.md"):
        assert (tmp_path / path).read_text(encoding="utf-8") == (ROOT / path).read_text(encoding="utf-8")
