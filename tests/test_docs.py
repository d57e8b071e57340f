"""The documentation: its tutorial runs, its links lead somewhere, its figures are those of studies, and it builds."""

import importlib.util
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
import yaml

from nxmiformer import cli
from nxmiformer.models import embedded

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md")), *sorted((DOCS / "methods").glob("*.md"))]
FEW = [f"recipe.phases.{phase}.epochs=0.1" for phase in ("dense", "admm", "finish")]  # of the steps, for time's sake
HUB = "sentence-transformers/all-MiniLM-L6-v2"
REAL = ROOT.parent / "shared" / "models" / "all-MiniLM-L6-v2"


def checkpoint(directory):
    """The model of the tutorial where it is at hand, else a small encoder in its place."""
    if REAL.is_dir():
        return str(REAL)
    tokenizer = embedded.tokenizer(["the", "film", "story", "cast", "was", "not", "dull", "great"])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        transformers.BertModel(transformers.BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return str(directory)


def test_the_tutorial_runs_from_its_first_line_to_its_last(tmp_path, monkeypatch, capsys):
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    monkeypatch.chdir(tmp_path)
    model = checkpoint(tmp_path / "model")
    names: dict[str, object] = {}
    for kind, text in re.findall(r"```(python|bash)\n(.*?)```", (DOCS / "tutorial.md").read_text(), flags=re.DOTALL):
        if kind == "python":
            exec(compile(text, "docs/tutorial.md", "exec"), names)
        else:
            words = [word.replace(HUB, model) for word in shlex.split(text)]
            monkeypatch.setattr(sys, "argv", [*words, "train.cpu=true", *(FEW if "export" not in text else [])])
            cli.main()
    assert len((tmp_path / "reviews.csv").read_text().splitlines()) == 401
    assert (tmp_path / "outputs" / "reviews" / "onnx" / "model.onnx").is_file()
    (share,) = re.findall(r"of the layers: ([\d.]+)%", capsys.readouterr().out)
    assert 9 < float(share) < 20


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_links_of_a_page_lead_to_files_and_headings_that_are_there(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        path, _, heading = link.partition("#")
        if path.startswith("https://arxiv.org/"):
            continue
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if heading:
            titles = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert heading in {
                re.sub(r"[^\w-]", "", title.lower().replace(" ", "-").replace("'", "-")) for title in titles
            }


def test_every_retained_share_of_a_methods_page_stands_in_a_study():
    studies = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "experiments").glob("*/README.md"))
    for page in sorted((DOCS / "methods").glob("*.md")):
        for share in re.findall(r"\d+\.\d ± \d+\.\d %", page.read_text(encoding="utf-8")):
            assert share in studies, f"{page.name}: {share}"


@pytest.mark.parametrize("group", ["plan", "recipe"])
def test_the_page_about_choosing_names_every_option(group):
    page = (DOCS / "choosing.md").read_text(encoding="utf-8")
    named = {word for words in re.findall(r"`([\w ,`]+)`", page) for word in re.findall(r"\w+", words)}
    named |= set(re.findall(rf"`{group}=(\w+)`", page))
    options = {path.stem for path in (ROOT / "conf" / group).glob("*.yaml")} - {"common", "base"}
    assert options <= named


def test_every_method_has_a_page_with_its_command():
    methods = {path.stem for path in (ROOT / "conf" / "method").glob("*.yaml")} - {"common", "dense"}
    for method in methods:
        text = (DOCS / "methods" / f"{method}.md").read_text(encoding="utf-8")
        assert "\nnxmiformer " in text, f"{method}.md has no command"
        assert "**Limits.**" in text, f"{method}.md says no limits"


def test_every_option_is_listed_with_its_values_and_what_each_means():
    made = runpy.run_path(str(DOCS / "generate.py"))
    text = made["options"]()
    for path in (ROOT / "conf").glob("*/*.yaml"):
        assert f"### {path.parent.name}={path.stem}" in text
    rows = re.findall(r"^\| `([^`=]+)=[^`]*` \| (.*) \|$", text, flags=re.MULTILINE)
    assert len(rows) > 200
    assert sorted({key for key, meaning in rows if not meaning}) == []


def test_the_workflow_calls_targets_that_the_makefile_lists_on_the_pythons_that_the_package_names():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    targets = re.findall(r"^([a-z]+):.*## ", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    steps = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    called = [step.removeprefix("make ") for step in steps if step.startswith("make ")]
    assert set(called) <= set(targets)
    assert {"check", "test", "wheel", "docs"} <= set(called)
    named = re.findall(r"Python :: (3\.\d+)$", (ROOT / "setup.cfg").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert workflow["jobs"]["test"]["strategy"]["matrix"]["python"] == named


@pytest.mark.skipif(importlib.util.find_spec("sphinx") is None, reason="the extra docs is not installed")
def test_the_documentation_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", str(DOCS), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "made" / "options.html").is_file()
    for name in ("sets", "errors", "cli"):
        assert (tmp_path / "made" / "api" / f"{name}.html").is_file()
