"""The README's Python runs, as it stands there."""

import re
import sys
from pathlib import Path

import torch
import transformers

from nxmiformer import CompressionPlan, load_packed, verify
from nxmiformer.models import embedded

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
sys.path.append(str(Path(__file__).parent / "report"))
from fabricated import write_sweep  # noqa: E402 (the fabricated runs belong to the report's tests)


def test_the_python_lines_of_the_readme_run_and_leave_a_packed_model_in_its_sets(tmp_path, monkeypatch):
    code, _ = BLOCKS
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


def test_the_python_lines_about_many_runs_read_them_and_draw_them(tmp_path, monkeypatch):
    _, code = BLOCKS
    write_sweep(tmp_path / "multirun", seeds=2)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(code, str(README), "exec"), names)
    assert len(names["runs"]) == len(set(names["curves"].directory)) == 24
    for figure in ("comparison.png", "frontier.png"):
        assert (tmp_path / figure).read_bytes().startswith(b"\x89PNG")
