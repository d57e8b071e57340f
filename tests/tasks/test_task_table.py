"""Rows come alike from a file of any kind, a directory of splits, or a directory in the layout of the hub."""

import logging
from pathlib import Path

import datasets
import pytest
import tables

from nxmiformer.tasks.table import Table

COLUMNS = {"text": ["NA", *tables.texts()[1:]], "stars": [i % 3 for i in range(tables.ROWS)]}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "datasets")
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def write(path, columns=COLUMNS):
    """The columns as a file of the kind that its ending says."""
    match path.suffix:
        case ".csv":
            tables.write_csv(path, columns)
        case ".tsv":
            tables.write_csv(path, columns, sep="\t")
        case ".parquet":
            datasets.Dataset.from_dict(columns).to_parquet(path)
        case _:
            tables.write_jsonl(path, columns)
    return str(path)


def read(path, **options):
    return Table(path=str(path), **options).table(lambda rows, where: rows)


@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv", "rows.jsonl", "rows.json", "rows.parquet"])
def test_the_rows_of_a_file_are_the_same_whatever_it_is_written_as(name, tmp_path):
    loud = tmp_path / name.upper()
    loud.write_bytes(Path(write(tmp_path / name)).read_bytes())
    for path in (tmp_path / name, loud):
        assert Table(path=str(path)).rows("train").to_dict() == COLUMNS


def test_the_lines_of_a_text_file_are_its_rows(tmp_path):
    (tmp_path / "rows.txt").write_text("one\ntwo\nthree\n")
    assert Table(path=str(tmp_path / "rows.txt")).rows("train").to_dict() == {"text": ["one", "two", "three"]}


@pytest.mark.parametrize("name", ["dev", "validation", "valid", "test"])
def test_a_directory_of_splits_gives_each_and_the_reported_one_is_found_by_its_name(name, tmp_path, caplog):
    caplog.set_level(logging.INFO, "nxmiformer")
    write(tmp_path / "train.csv")
    write(tmp_path / f"{name}.csv", {key: values[:5] for key, values in COLUMNS.items()})
    found = read(tmp_path)
    assert found["validation"].to_dict() == {key: values[:5] for key, values in COLUMNS.items()}
    assert {split: len(rows) for split, rows in found.items()} == {"train": 22, "holdout": 2, "validation": 5}
    assert ("the reported score is that of the split 'test'" in caplog.text) == (name == "test")


def test_a_configuration_of_a_directory_in_the_hubs_layout_is_read_and_a_wrong_one_is_told_with_those_there(tmp_path):
    lines = ["---", "configs:"]
    for name in ("small", "large"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "train.parquet", {"text": [f"{name} {i}" for i in range(9)]})
        lines += [f"- config_name: {name}", f"  data_files: {name}/train.parquet"]
    (tmp_path / "README.md").write_text("\n".join([*lines, "---", ""]))
    assert read(tmp_path, configuration="large")["train"]["text"][0].startswith("large")
    with pytest.raises(ValueError, match=r"nope: it cannot be read: .*'nope' not found.*\['small', 'large'\]"):
        read(tmp_path, configuration="nope")
    with pytest.raises(ValueError, match=r"give its configuration, task\.configuration=.*\['small', 'large'\]"):
        read(tmp_path)


def test_where_there_is_no_validation_split_one_is_cut_told_and_the_same_every_time(tmp_path, caplog):
    caplog.set_level(logging.INFO, "nxmiformer")
    columns = {"number": list(range(100))}
    path = write(tmp_path / "rows.csv", columns)
    found, again = read(path), read(path)
    assert {name: rows.to_dict() for name, rows in found.items()} == {n: rows.to_dict() for n, rows in again.items()}
    assert sorted(number for rows in found.values() for number in rows["number"]) == columns["number"]
    assert {name: len(rows) for name, rows in found.items()} == {"train": 81, "holdout": 10, "validation": 9}
    assert f"{path}: there is no validation split; of the 90 training rows 9 become it" in caplog.text


def test_fewer_rows_may_be_asked_for_and_those_of_the_figure_are_drawn_by_lot(tmp_path):
    write(tmp_path / "train.csv", {"number": list(range(40))})
    write(tmp_path / "dev.csv", {"number": list(range(100))})
    whole, few = read(tmp_path), read(tmp_path, train_examples=7, validation_examples=20)
    assert few["train"]["number"][:] == whole["train"]["number"][:7]
    assert few["holdout"].to_dict() == whole["holdout"].to_dict()
    assert len(few["validation"]) == 20
    assert max(few["validation"]["number"]) > 50


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.csv", "", "a.csv: the file is empty"),
        ("a.csv", "text,label\n", "a.csv: it cannot be read: it has no rows"),
        ("a.csv", "text,label\none,1\n", "the training split has 1 row, and the holdout and the validation are cut"),
        ("a.csv", "text,text\na,b\n", r"two columns are called 'text'; it has \['text', 'text'\]"),
        ("a.csv", "text,label\ngood, really,1\nbad, really,0\n", "more fields than the first line has names"),
        ("a.csv", "text,label\none,1\ngood, really,1\n", "it cannot be read: .*Expected 2 fields in line 3, saw 3"),
        ("a.csv", b"text,label\n\xe9,1\n", "it cannot be read: 'utf-8' codec can't decode"),
        ("a.jsonl", '{"text": ', "it cannot be read: .*JSON"),
        ("a.parquet", "no", "it cannot be read: Parquet"),
        ("a.xlsx", "no", r"a file is one of \.csv, \.tsv, \.json, \.jsonl, \.parquet, \.txt"),
        ("b.csv", None, "a.csv: there is no such file or directory"),
    ],
)
def test_a_file_that_cannot_be_read_is_told_with_the_reason_and_nothing_else_is_printed(
    name, content, told, tmp_path, capfd
):
    path = tmp_path / name
    if content is None:
        path = tmp_path / "a.csv"
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=told):
        read(path)
    assert capfd.readouterr() == ("", "")


def test_a_directory_without_rows_and_splits_of_other_columns_are_told(tmp_path):
    with pytest.raises(ValueError, match=r"there is no file of \.csv, .* in it"):
        read(tmp_path)
    write(tmp_path / "train.csv")
    write(tmp_path / "test.csv", {"text": ["a"], "other": [1]})
    with pytest.raises(ValueError, match=r"its files have other columns, \[.*'other'\] and \[.*'stars'\]"):
        read(tmp_path)


def test_a_split_that_is_not_there_is_told_with_those_that_are(tmp_path):
    path = write(tmp_path / "rows.csv")
    with pytest.raises(ValueError, match=r"there is no split 'dev'; there are \['train'\]"):
        read(path, validation_split="dev")
    assert len(read(path, train_split="mine")["train"]) == 20


@pytest.mark.parametrize("options", [{"share": 1.0}, {"most": 0}, {"train_examples": 0}, {"validation_examples": 0}])
def test_sizes_that_no_split_can_have_are_refused(options):
    with pytest.raises(ValueError, match=r"at least (one example|1, or null)"):
        Table(path="nowhere.csv", **options)
