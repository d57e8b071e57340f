"""What the command tells at once, without a model: against the files that it is read from, and against Hydra."""

import gc
import os
import subprocess
import sys
import types
from pathlib import Path

import hydra
import pytest
from omegaconf import OmegaConf

import nxmiformer
import nxmiformer_console as console
from nxmiformer import conf

ROOT = Path(next(iter(conf.__path__)))
OPTIONS = sorted(path.relative_to(ROOT).with_suffix("").as_posix() for path in ROOT.glob("*/*.yaml"))


@pytest.fixture
def told(monkeypatch, capsys):
    """What the command prints for these words, and its exit status."""

    def call(*words, columns=80):
        monkeypatch.setattr(sys, "argv", ["nxmiformer", *words])
        monkeypatch.setenv("COLUMNS", str(columns))
        try:
            console.main()
        except SystemExit as end:
            return capsys.readouterr().err, end.code
        return capsys.readouterr().out, 0

    return call


def test_what_needs_no_model_is_told_without_torch_and_nothing_is_trained_or_left(tmp_path):
    code = """
import sys, nxmiformer_console
for words in ([], ["--version"], ["--help"], ["--help", "plan"], ["-h"]):
    sys.argv = ["nxmiformer", *words]
    nxmiformer_console.main()
print([name for name in ("torch", "nxmiformer", "hydra") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert list(tmp_path.iterdir()) == []


def test_without_arguments_the_command_says_what_it_is_and_names_commands_and_what_to_read(told):
    text, status = told()
    assert status == 0
    assert text.startswith(f"nxmiformer {nxmiformer.__version__}: ")
    assert len([line for line in text.splitlines() if line.startswith("  nxmiformer ") and "--" not in line]) == 6
    assert "nxmiformer --help" in text


def test_the_version_is_that_of_the_package(told):
    assert told("--version") == (f"nxmiformer {nxmiformer.__version__}\n", 0)


def test_the_commands_that_are_named_compose():
    for command in console.COMMANDS:
        with hydra.initialize_config_module("nxmiformer.conf", version_base="1.3"):
            hydra.compose("config", command.split()[1:])


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_says_what_it_is_at_its_head(option):
    assert console.read(option).head.endswith((".", "!", "?"))


def test_help_names_every_group_with_its_options_and_what_they_are(told):
    text, status = told("--help")
    assert status == 0
    assert "make a Transformer sparse" in text.splitlines()[0]
    groups = {line.partition(":")[0].partition("@")[0] for line in text.splitlines() if not line.startswith(" ")}
    words = " ".join(text.replace(" * ", " ").split())
    for option in OPTIONS:
        group, _, name = option.partition("/")
        if name not in console.SHARED:
            assert group in groups
            assert f" {name} {console.read(option).head}" in words


@pytest.mark.parametrize("words", [[], ["--help"], *(["--help", option.replace("/", "=")] for option in OPTIONS[::7])])
@pytest.mark.parametrize("columns", [60, 80])
def test_what_is_told_fits_the_terminal_but_for_words_that_are_longer_and_commands(told, words, columns):
    text, _ = told(*words, columns=columns)
    long = [line.strip() for line in text.splitlines() if len(line) > columns]
    assert all(line.startswith("nxmiformer ") or "=" in line for line in long), long


COMPOSED = {
    "plan/2of4": (["plan=2of4"], "plan"),
    "recipe/admm_relative": (["recipe=admm_relative", "model=pretrained"], "recipe"),
    "recipe/sr_ste": (["recipe=sr_ste", "model=pretrained"], "recipe"),
    "search/component": (["search=component"], "search"),
    "search/uniform": (["search=uniform"], "search"),
    "task/mrpc": (["task=mrpc"], "task"),
    "tracker/wandb": (["tracker=wandb"], "tracker"),
    "method/sr_ste": (["method@recipe.phases.dense.method=sr_ste"], "recipe.phases.dense.method"),
}


@pytest.mark.parametrize("option", COMPOSED)
def test_the_values_of_an_option_are_those_that_hydra_composes(option):
    overrides, key = COMPOSED[option]
    with hydra.initialize_config_module("nxmiformer.conf", version_base="1.3"):
        composed = OmegaConf.to_container(hydra.compose("config", overrides), resolve=False)
    node = composed
    for part in key.split("."):
        node = node[part]
    ours = {
        name: OmegaConf.to_container(OmegaConf.create(f"value: {each.value}"), resolve=False)["value"]
        for name, each in console.gathered(*option.split("/"), key).items()
    }
    assert ours == flat(node, key)


def flat(node, key):
    """Every value below a node, by its whole key."""
    if not isinstance(node, dict) or not node:
        return {key: node}
    return {name: value for part in node for name, value in flat(node[part], f"{key}.{part}").items()}


def test_an_experiment_names_the_options_that_it_takes_instead(told):
    assert "  plan=1of4_int4" in told("--help", "experiment=demo")[0].splitlines()


@pytest.mark.parametrize("word", ["plna", "plan=int5"])
def test_a_group_or_an_option_that_is_not_there_is_named_with_those_that_are(told, word):
    text, status = told("--help", word)
    assert status == 2
    assert "there are" in text
    assert "plan" in text


def test_a_reader_that_closes_the_pipe_ends_nothing_in_a_traceback():
    code = "import nxmiformer_console as c, sys; sys.argv = ['nxmiformer', '--help']; c.main()"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode in (0, 120), os.strerror(process.returncode)


@pytest.fixture
def seen(monkeypatch):
    """What `look` gives when the command opens `cli`, which imports torch, and when it runs it."""

    def call(look):
        def opened(name):
            if name != "main":
                raise AttributeError(name)
            found.append(look())
            return lambda: found.append(look())

        found, cli = [], types.ModuleType("nxmiformer.cli")
        monkeypatch.setattr(cli, "__getattr__", opened, raising=False)
        monkeypatch.setitem(sys.modules, "nxmiformer.cli", cli)
        monkeypatch.setattr(sys, "argv", ["nxmiformer", "task=grammar"])
        console.main()
        return found

    return call


@pytest.mark.parametrize(("said", "found"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_sleep_while_they_wait_unless_the_user_says_otherwise_before_torch_is_read(
    said, found, seen, monkeypatch
):
    """What it is when torch is imported is what OpenMP reads."""
    monkeypatch.setenv("OMP_WAIT_POLICY", said or "")
    if said is None:
        monkeypatch.delenv("OMP_WAIT_POLICY")
    assert seen(lambda: os.environ.get("OMP_WAIT_POLICY")) == [found, found]


def test_garbage_is_looked_for_while_the_command_runs_and_not_while_it_is_imported(seen):
    assert seen(gc.isenabled) == [False, True]
