import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("setuptools") is None, reason="setuptools, which builds it, is missing"
    ),
    pytest.mark.skipif(not (ROOT / "setup.cfg").is_file(), reason="this is not a source tree"),
]


def python(code, cwd, **env):
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy: nothing that an earlier build left behind gets into it."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("nxmiformer", "conf", "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ROOT.glob("*"):
        if file.is_file():
            shutil.copy(file, source)
    python(f"from setuptools.build_meta import build_wheel; build_wheel({str(out)!r})", source)
    (built,) = out.glob("*.whl")
    return built


def test_the_wheel_holds_every_module_every_config_and_the_type_marker_and_no_tests(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    ours = [path for kind in ("*.py", "templates/*") for path in (ROOT / "nxmiformer").rglob(kind)]
    modules = {path.relative_to(ROOT).as_posix() for path in ours}
    configs = {f"nxmiformer/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "conf").rglob("*.yaml")}
    assert len(configs) > 30
    expected = {*modules, *configs, "nxmiformer/conf/__init__.py", "nxmiformer/py.typed", "nxmiformer_console.py"}
    assert {name for name in names if ".dist-info/" not in name} == expected


def test_the_wheel_names_its_console_script(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (entry_points,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
        assert "nxmiformer = nxmiformer_console:main" in archive.read(entry_points).decode()


UNPACKED = """
import sys
from pathlib import Path
import nxmiformer
import nxmiformer_console
from nxmiformer import cli, conf
for module in (nxmiformer, nxmiformer_console, cli, conf):
    assert Path(module.__file__).is_relative_to({place!r}), module.__file__
import hydra
with hydra.initialize_config_module("nxmiformer.conf", version_base="1.3"):
    config = hydra.compose("config", ["name=run", "recipe=sr_ste", "plan=1of4_int8"])
job = cli.build(config, Path("nowhere"))
print(f"built a job with {{list(job.recipe.phases)}} and {{job.planning.weight}}")
sys.argv = ["nxmiformer", "--help"]
nxmiformer_console.main()
"""


def test_what_is_unpacked_from_the_wheel_composes_a_job_and_tells_its_options(wheel, tmp_path):
    place = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(place)
    (tmp_path / "elsewhere").mkdir()
    told = python(UNPACKED.format(place=str(place)), tmp_path / "elsewhere", PYTHONPATH=str(place))
    assert "built a job with ['dense', 'sr_ste'] and 1:4+int8" in told
    assert re.search(r"^  2of4_int4 \*\s+2:4\s+sparsity", told, re.MULTILINE)
