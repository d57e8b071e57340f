"""A run is read as it was written, and damage is told by file and key."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from fabricated import write_run

from nxmiformer.runs import words
from nxmiformer.runs.numbers import Report, read_run

FILES = ("plan.json", "metrics.jsonl", "report.json")


def change(path: Path, *keys: str, value: object = None, remove: bool = False) -> None:
    """Set or remove one key of a JSON file."""
    content = inner = json.loads(path.read_text())
    for key in keys[:-1]:
        inner = inner[key]
    if remove:
        del inner[keys[-1]]
    else:
        inner[keys[-1]] = value
    path.write_text(json.dumps(content))


def test_a_report_is_read_as_it_was_written(tmp_path):
    report = read_run(write_run(tmp_path)).report
    assert isinstance(report, Report)
    written = json.loads((tmp_path / "report.json").read_text())
    assert {key: value for key, value in asdict(report).items() if key in written} == written


def test_series_take_the_finite_numbers_of_the_rows_that_have_them(tmp_path):
    write_run(tmp_path, phases={"dense": ("dense", 2)})
    lines = [
        '{"phase": "a", "step": 1, "total_step": 1, "seconds": 0, "loss": 2.0}',
        '{"phase": "a", "step": 2, "total_step": 2, "seconds": 0.1, "loss": NaN, "gap": 0.5, "gap/x.weight": 1}',
        "",
        '{"phase": "b", "step": 5, "total_step": 7, "seconds": 0.2, "loss": 1, "gap": null}',
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    run = read_run(tmp_path)
    assert run.series("loss") == ([1, 7], [2.0, 1.0])
    assert run.series("gap") == ([2], [0.5])
    assert run.series("nothing") == ([], [])
    assert run.layered("gap") == {"x.weight": ([2], [1.0])}
    assert run.spans == (("a", 0, 2), ("b", 2, 7))


@pytest.mark.parametrize("name", FILES)
def test_missing_file_is_named(tmp_path, name):
    (write_run(tmp_path) / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        read_run(tmp_path)


@pytest.mark.parametrize("damage", [b"{", b"[]", b"\xff\xfe", b"7"])
@pytest.mark.parametrize("name", FILES)
def test_damaged_file_is_named(tmp_path, name, damage):
    (write_run(tmp_path) / name).write_bytes(damage)
    with pytest.raises(ValueError, match=name):
        read_run(tmp_path)


@pytest.mark.parametrize(
    "keys",
    [
        ("command",),
        ("task", "metric"),
        ("scores", "dense"),
        ("scores", "dense", "accuracy"),
        ("storage", "bytes", "packed_model"),
        ("storage", "compression", "all"),
        ("layers", "bert.encoder.layer.1.output.dense", "error"),
        ("layers", "bert.encoder.layer.1.output.dense"),
        ("phases", "admm", "seconds"),
    ],
)
def test_missing_key_is_named_with_its_file(tmp_path, keys):
    path = write_run(tmp_path) / "report.json"
    change(path, *keys, remove=True)
    with pytest.raises(ValueError, match=r"report\.json") as error:
        read_run(tmp_path)
    assert ".".join(keys) in str(error.value)


@pytest.mark.parametrize(
    ("keys", "value"),
    [(("seed",), "7"), (("seed",), True), (("task",), []), (("retention",), "high"), (("format",), 2)],
)
def test_wrong_value_is_named_with_its_file(tmp_path, keys, value):
    path = write_run(tmp_path) / "report.json"
    change(path, *keys, value=value)
    with pytest.raises(ValueError, match=rf"report\.json.*{keys[-1]}"):
        read_run(tmp_path)


def test_row_without_a_step_is_named_by_line(tmp_path):
    path = write_run(tmp_path) / "metrics.jsonl"
    path.write_text(path.read_text() + '{"phase": "admm", "total_step": 3, "seconds": 1}\n')
    count = len(path.read_text().splitlines())
    with pytest.raises(ValueError, match=rf"metrics\.jsonl, line {count}: the key 'step' is missing"):
        read_run(tmp_path)


def test_words():
    assert words.percent(0.98904) == "98.9 %"
    assert words.percent(-0.02) == "−2.0 %"
    assert words.percent(None) == words.percent(float("nan")) == "–"
    assert [words.size(n) for n in (0, 999, 1000, 37_400_000, 265_900_000, 999_600, 1.2e12)] == [
        "0 B", "999 B", "1.00 kB", "37.4 MB", "266 MB", "1.00 MB", "1200 GB",
    ]  # fmt: skip
    assert [words.duration(s) for s in (0.84, 41.2, 59.7, 192, 3720)] == [
        "0.8 s", "41 s", "1 min 00 s", "3 min 12 s", "1 h 02 min",
    ]  # fmt: skip
    assert [words.file_share(r) for r in (7.04, 7.1, 13.4, 1.0, 0.5, 120)] == [
        "1/7 of the file",
        "1/7.1 of the file",
        "1/13 of the file",
        "1.00× the file",
        "2.00× the file",
        "1/120 of the file",
    ]


def test_headline_states_the_finding(make):
    run = make()
    assert words.headline(run) == f"2:4+int4 retains 98.9 % of accuracy in {words.file_share(run.shrinkage)}"
