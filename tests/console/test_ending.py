import ast
import shlex
from pathlib import Path

import hydra
import pytest

from nxmiformer.console import ending


def commands(lines):
    """The words of every command that the lines name; what is not one is Python."""
    told = [line.strip().rpartition("    # ")[0] for line in lines[lines.index("next:") + 1 :]]
    for line in told:
        if line.startswith("python: "):
            ast.parse(line.removeprefix("python: "))
    return [shlex.split(line)[1:] for line in told if not line.startswith("python: ")]


def composed(words):
    with hydra.initialize_config_module("nxmiformer.conf", version_base="1.3"):
        return hydra.compose("config", words)


@pytest.fixture
def here(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_job_ends_with_where_its_result_is_and_commands_that_compose(here):
    run = here / "outputs" / "a"
    told = [
        ending.compressed(run),
        ending.exported("onnx", run / "onnx", "outputs/a", "AutoModelForCausalLM"),
        ending.exported("compressed_tensors", run / "compressed_tensors", "outputs/a", "AutoModelForCausalLM"),
        ending.benched(run / "bench", "outputs/a"),
    ]
    assert any('transformers.AutoModelForCausalLM.from_pretrained("outputs/a/' in line for line in told[2])
    for lines in told:
        assert ": outputs/a/" in lines[0]
        assert {word for words in commands(lines) for word in words if word.startswith("path=")} == {"path=outputs/a"}
    every = {tuple(words) for lines in told for words in commands(lines)}
    assert {composed(list(words)).job for words in every} == {"export", "bench"}


def test_a_search_ends_with_the_command_that_compresses_the_same_model_by_its_plan(here):
    words = ["job=search", "task=rte", "+task.most=7", "model=pretrained", "model.path=./it", "budget.ratio=0.1"]
    more = ["search.keep=5", "sensitivity@search.sensitivity=measured", "plan.exclude=[a]", "seed=3"]
    ((found),) = commands(ending.searched(here / "outputs" / "s", [*words, *more], "s"))
    config = composed([word.removeprefix("+") for word in found])
    assert (config.plan.path, config.job, config.budget.ratio) == ("outputs/s/plan.json", "compress", None)
    assert (config.task.name, config.task.most, config.model.path, config.seed) == ("rte", 7, "./it", 3)
    assert not [word for word in found if word.startswith(("search", "sensitivity", "plan.exclude", "name"))]


@pytest.mark.parametrize("words", [["name=s"], ["experiment=demo"]])
def test_a_run_after_a_search_does_not_get_the_name_of_the_search(here, words):
    ((found),) = commands(ending.searched(here / "outputs" / "s", words, "s"))
    assert composed(found).name == "s-compressed"


def test_what_has_been_stopped_goes_on_by_the_same_words_and_its_name(here):
    line = ending.interrupted(["task=rte", "resume=false", "overwrite=true", "plan.include=['*.query']"], "name=a [b]")
    words = shlex.split(line.partition("it: ")[2])[1:]
    assert words == ["task=rte", "plan.include=['*.query']", "name=a [b]", "resume=true"]


def test_a_place_elsewhere_is_named_whole(here):
    assert ending.compressed(Path("/far/away"))[0] == "report: /far/away/report.html"
