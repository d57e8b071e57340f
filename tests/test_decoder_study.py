"""The study of decoders runs from end to end, on a tiny one, does no row twice, and scores a rival's checkpoint."""

import csv
import json
import runpy
import shutil
import sys
from pathlib import Path

import transformers

sys.path.append(str(Path(__file__).parent / "tasks"))
from languages import NARROW, seeded, sentences, tokenizer, written

STUDY = Path(__file__).parents[1] / "experiments" / "decoder" / "run.py"
SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def test_the_study_of_decoders_writes_a_row_for_each_model_and_runs_none_twice(tmp_path, monkeypatch):
    model = tmp_path / "dense"
    seeded(transformers.LlamaForCausalLM, transformers.LlamaConfig(**{**NARROW, **SIZES})).save_pretrained(model)
    tokenizer("$A").save_pretrained(model)
    (tmp_path / "texts").mkdir()
    for name, count in (("train", 40), ("test", 8)):
        written(tmp_path / "texts" / f"{name}.jsonl", text=sentences(count))
    shutil.copytree(model, tmp_path / "out" / "rival")
    (tmp_path / "out" / "rival" / "seconds.json").write_text("7.2")
    words = ["--model", str(model), "--texts", str(tmp_path / "texts"), "--outputs", str(tmp_path / "out")]
    words += ["--results", str(tmp_path / "results.csv"), "--windows", "4", "--length", "16", "--iterations", "1"]
    monkeypatch.setattr(sys, "argv", ["run.py", *words, "--plans", "int4", "--rivals", "rival"])
    monkeypatch.syspath_prepend(str(STUDY.parents[1]))
    for _ in range(2):
        runpy.run_path(str(STUDY), run_name="__main__")
    with (tmp_path / "results.csv").open(newline="") as opened:
        rows = {row["name"]: row for row in csv.DictReader(opened)}
    assert list(rows) == ["dense", "rival", "int4"]
    assert rows["rival"]["perplexity"] == rows["dense"]["perplexity"]  # it is the dense one
    assert rows["rival"]["seconds"] == "7"
    assert float(rows["int4"]["share"]) == 0.140625
    windows = json.loads((tmp_path / "out" / "windows.json").read_text())
    assert [len(each) for each in windows] == [16] * 4
