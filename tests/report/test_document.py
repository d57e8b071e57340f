"""The documents say what the report says, need no other file, and trust no name."""

import json
import re
from html.parser import HTMLParser

import hydra
import pytest
from fabricated import mixed, write_run
from rich.console import Console

from nxmiformer.figures.tradeoff import size
from nxmiformer.report import content
from nxmiformer.report.document import markdown, page, write_report
from nxmiformer.report.table import summary
from nxmiformer.runs import words
from nxmiformer.runs.numbers import read_run

HOSTILE = "<script>alert('x')</script>\"><img src=http://evil.example/a.png>|`$\\frac{1}$ **[b](http://evil.example)"
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """What a page asks for, and its text; raises where the tags do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.asked: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.asked += [value for name, value in attributes if name in ("src", "href", "srcset", "data", "action")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_files_are_written_whole_and_nothing_else(tmp_path):
    write_run(tmp_path)
    for _ in range(2):  # again, over the first
        written = write_report(tmp_path)
    assert set(written) == {"markdown", "html", "size", "storage", "heatmap", "training", "convergence"}
    inputs = {tmp_path / name for name in ("plan.json", "metrics.jsonl", "report.json", "run.json")}
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == inputs | set(written.values())
    markdown = written["markdown"].read_text()
    assert all(f"(figures/{path.name})" in markdown for path in written.values() if path.suffix == ".png")


def test_a_failed_write_leaves_no_draft(tmp_path, monkeypatch):
    write_run(tmp_path)

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="no space left"):
        write_report(tmp_path)
    assert [path.name for path in (tmp_path / "figures").iterdir()] == []


def expected(report: dict) -> list[str]:
    """Every number of the report that a reader looks for, as it is printed."""
    storage, cost = report["storage"], report["storage"]["compression"]
    found = [words.score(metric, v) for stage in report["scores"].values() for metric, v in stage.items()]
    found += [words.percent(report["retention"])]
    found += [words.percent(cost[key], 2) for key in ("values", "indices", "all", "model")]
    packed = storage["value_bits"] + storage["index_bits"] + storage["scale_bits"]
    found += [f"{bits:,}" for bits in (storage["value_bits"], packed, packed + storage["rest_bits"])]
    found += [words.size(nbytes) for nbytes in storage["bytes"].values()]
    found += [words.duration(phase["seconds"]) for phase in (*report["phases"].values(), report)]
    found += [f"{1000 * phase['step_seconds']:.0f} ms" for phase in report["phases"].values()]
    found += [words.size(phase["memory"]) for phase in report["phases"].values()]
    return [number for number in found if number != words.NONE]


def layer_numbers(report: dict) -> list[str]:
    return [words.percent(layer[key]) for layer in report["layers"].values() for key in ("error", "kept")]


@pytest.mark.parametrize("options", [{}, {"assign": mixed}, {"phases": {"dense": ("dense", 30)}}])
def test_documents_show_the_numbers_of_the_report(tmp_path, options):
    run = read_run(write_run(tmp_path, **options))
    report = json.loads((tmp_path / "report.json").read_text())
    documents = (markdown(run, {}), Page(page(run, {})).text)
    facts = ["nxmiformer run task=sst2 plan=joint seed=7", "torch 2.13.0", "a91d6e8", "cpu"]
    for text in [*expected(report), *layer_numbers(report), *facts]:
        assert all(text in document for document in documents)
    for reason in run.plan.skipped.values():
        assert all(reason in document for document in documents)


@pytest.mark.parametrize(
    ("rest", "left", "overrides"),
    [
        (4_000_000, {"embeddings": 96_000_000, "head": 640_000}, "plan.embeddings=int4 plan.head=int4 packs"),
        (4_000_000, {"embeddings": 0, "head": 640_000}, "; plan.head=int4 packs"),
        (4_000_000, {"embeddings": 0, "head": 0}, None),
        (1_000, {"embeddings": 24_000, "head": 640}, None),
    ],
)
def test_where_most_of_the_file_is_left_dense_every_report_prints_the_override_that_packs_it(
    tmp_path, rest, left, overrides
):
    report = json.loads((write_run(tmp_path, rest=rest) / "report.json").read_text())
    report["storage"]["left"] = left
    (tmp_path / "report.json").write_text(json.dumps(report))
    run, console = read_run(tmp_path), Console(width=200, color_system=None)
    with console.capture() as capture:
        console.print(summary(run))
    for text in (capture.get(), markdown(run, {}), Page(page(run, {})).text):
        assert overrides in text if overrides else "=int4 packs" not in text
    words_of = [word for word in words.advice(run).split() if word.startswith("plan.")]
    with hydra.initialize_config_module("nxmiformer.conf", version_base="1.3"):
        plan = hydra.compose("config", words_of).plan
    assert {part for part in left if plan[part] == "int4"} == {word[5:-5] for word in words_of}


def test_every_size_of_a_report_says_whether_it_is_of_the_layers_or_of_the_file(tmp_path):
    run = read_run(write_run(tmp_path))
    table = content.storage(run)
    assert {row[table.header.index("of")] for row in table.rows} == {"the layers", "the file"}
    assert words.headline(run).endswith(" of the file")
    measured = run.report.storage.bytes
    for nbytes in (measured.packed_model, measured.dense_model):
        assert f"{words.size(nbytes)} of the file" in {
            text.get_text().rpartition(", ")[2] for text in size(run).axes[0].texts
        }


def test_page_needs_no_other_file(tmp_path):
    text = write_report(write_run(tmp_path))["html"].read_text()
    page = Page(text)
    assert len(page.asked) == 5
    assert all(asked.startswith("data:image/svg+xml;base64,") for asked in page.asked)
    assert "url(" not in text
    assert "@import" not in text
    assert not page.tags & {"script", "link", "iframe"}


def test_hostile_names_are_text(tmp_path):
    report = json.loads((write_run(tmp_path) / "report.json").read_text())
    task = {**report["task"], "name": HOSTILE, "metric": HOSTILE}
    scores = {stage: {HOSTILE: 0.5, **taken} for stage, taken in report["scores"].items()}
    versions = {HOSTILE: HOSTILE}
    changes = {"name": HOSTILE, "command": HOSTILE, "device": HOSTILE, "revision": HOSTILE, "versions": versions}
    changes |= {"task": task, "scores": scores, "plan": {"name": HOSTILE, "fingerprint": HOSTILE}}
    path = write_run(tmp_path, prefix=f"{HOSTILE}.h", phases={HOSTILE: (HOSTILE, 3)}, **changes)
    layers = json.loads((path / "report.json").read_text())
    layers["layers"] = {name: {**layer, "set": HOSTILE} for name, layer in layers["layers"].items()}
    (path / "report.json").write_text(json.dumps(layers))

    written = write_report(path)
    text = written["html"].read_text()
    page = Page(text)
    assert not page.tags & {"script", "link", "iframe"}
    assert all(asked.startswith("data:image/svg+xml;base64,") for asked in page.asked)
    assert HOSTILE in page.text
    prose, _, _ = written["markdown"].read_text().partition("## How to reproduce")
    assert "<script" not in prose
    assert "<img" not in prose
    assert not re.search(r"(?<!\\)\]\(http", prose)
    for block in prose.split("\n\n"):
        if block.startswith("|"):  # a table: every row has the cells of its header
            assert len({line.replace("\\|", "").count("|") for line in block.splitlines()}) == 1


def test_fence_outlasts_the_command(tmp_path):
    run = read_run(write_run(tmp_path, command="a\n```\n# not a heading"))
    assert "````sh\na\n```\n# not a heading\n````" in markdown(run, {})


@pytest.mark.parametrize("options", [{}, {"assign": mixed}, {"phases": {"dense": ("dense", 30)}}])
def test_summary_fits_80_columns_with_every_number(tmp_path, options):
    write_run(tmp_path, **options)
    console = Console(width=80, color_system=None)
    with console.capture() as capture:
        console.print(summary(read_run(tmp_path)))
    text = capture.get()
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    for number in expected(json.loads((tmp_path / "report.json").read_text())):
        assert number in text


def test_summary_folds_long_names_and_no_numbers(tmp_path):
    phases = {"phase-" + "x" * 60: {"method": "method-" + "y" * 60, "steps": 123_456, "seconds": 98_765.0}}
    write_run(tmp_path, phases={"dense": ("dense", 3)})
    report = json.loads((tmp_path / "report.json").read_text()) | {"phases": phases}
    (tmp_path / "report.json").write_text(json.dumps(report))
    console = Console(width=80, color_system=None)
    with console.capture() as capture:
        console.print(summary(read_run(tmp_path)))
    assert "123456" in capture.get()
    assert words.duration(98_765.0) in capture.get()
