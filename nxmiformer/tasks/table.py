"""Rows from a file, a directory of splits or the hub, as the three splits of a task."""

import csv
import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import datasets
import pyarrow as pa

log = logging.getLogger(__name__)

READERS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet", ".txt": "text"}
VALIDATION = ("validation", "dev", "valid", "test")  # what a split is called that nothing was trained on
# A text may be "NA" or "None": only an empty field is none. In one piece, or a type would be that of the first rows.
CSV = {"keep_default_na": False, "na_values": [""], "chunksize": 2**31}

MOST = 300  # characters of a library's error

AT_HAND = "the rows that were given"

Check = Callable[[datasets.Dataset, str], datasets.Dataset]


@dataclass(frozen=True, kw_only=True)
class Table:
    """Where the rows of a task come from.

    Attributes:
        path: a CSV, TSV, JSON (lines), Parquet or text file, a directory of splits, or a data set on the hub.
        configuration: configuration of a data set on the hub, or of a directory of the same layout.
        train_split: name of the training split.
        validation_split: name of the split of the reported score; None: the first existing one of VALIDATION, else a
            part of the training rows.
        share: of the training rows that go to `holdout`, and to `validation` where it is cut, at most
        most: rows each. They are the same ones for every seed of a run.
        train_examples: keep only so many training rows (None: all).
        validation_examples: keep only so many rows for the reported score, drawn at random (None: all).
    """

    path: str
    configuration: str | None = None
    train_split: str = "train"
    validation_split: str | None = None
    share: float = 0.1
    most: int = 2000
    train_examples: int | None = None
    validation_examples: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.share < 1 or self.most < 1:
            raise ValueError(
                f"the holdout needs a share in (0, 1) and at least one example, not {self.share}, {self.most}"
            )
        for name in ("train_examples", "validation_examples"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"task.{name}={getattr(self, name)}: at least 1, or null for all")

    @classmethod
    def of(cls, rows: datasets.DatasetDict, **fields: Any) -> Self:
        """The task on given rows, by split; `fields` are its other fields."""
        task = cls(path=AT_HAND, **fields)
        vars(task)["source"] = rows.with_format(None)  # its columns are then lists
        return task

    def table(self, check: Check) -> datasets.DatasetDict:
        """The splits `train`, `holdout` and `validation`.

        Args:
            check: of the rows of a split and its name in messages: the rows as the task takes them, or a ValueError.

        Raises:
            ValueError: a split is missing, empty, or too small to be divided.
        """
        reported = self._reported()
        rows = check(self.rows(self.train_split), self.where(self.train_split))
        found = {} if reported is None else {"validation": check(self.rows(reported), self.where(reported))}
        cut = [name for name in ("holdout", "validation") if name not in found]
        if len(rows) <= len(cut):
            few, parts = f"{len(rows)} row{'s' * (len(rows) != 1)}", " and the ".join(cut)
            verb = "is" if len(cut) == 1 else "are"
            raise ValueError(f"{self._place}: the training split has {few}, and the {parts} {verb} cut from it")
        for name in cut:
            size = min(self.most, max(1, round(self.share * len(rows))), len(rows) - 1)
            count, (rows, found[name]) = len(rows), self.parted(rows, size)
            if name == "validation":
                told = "%s: there is no validation split; of the %s training rows %s become it, the same for every seed"
                log.info(told, self._place, f"{count:,}", f"{len(found[name]):,}")
        validation = found["validation"]
        if self.validation_examples is not None and self.validation_examples < len(validation):
            validation = validation.shuffle(seed=0).select(range(self.validation_examples))
        if self.train_examples is not None:
            rows = rows.select(range(min(self.train_examples, len(rows))))
        return datasets.DatasetDict(train=rows, holdout=found["holdout"], validation=validation)

    def parted(self, rows: datasets.Dataset, size: int) -> tuple[datasets.Dataset, datasets.Dataset]:
        """The rows without `size` of them, and these, drawn by lot and the same ones always."""
        parts = rows.train_test_split(test_size=size, seed=0, shuffle=True)
        return parts["train"], parts["test"]

    def rows(self, split: str) -> datasets.Dataset:
        """The rows of a split, as they are; a ValueError where there are none."""
        if split not in self.source:
            raise ValueError(f"{self._place}: there is no split {split!r}; there are {sorted(self.source)}")
        if not len(self.source[split]):
            raise ValueError(f"{self.where(split)} has no rows")
        return self.source[split]

    def where(self, split: str) -> str:
        """How messages call a split."""
        called = "training" if split == self.train_split else split.replace("_", " ")
        return f"{self._place}: the {called} split"

    @property
    def _place(self) -> str:
        return self.path if self.configuration is None else f"{self.path}, {self.configuration}"

    def _reported(self) -> str | None:
        """What the split of the reported figure is called; None where it is to be cut."""
        known = [name for name in VALIDATION if name in self.source and name != self.train_split]
        if self.validation_split is None and known and known[0] == "test":
            log.info("%s: the reported score is that of the split 'test'", self._place)
        return self.validation_split or (known[0] if known else None)

    @cached_property
    def source(self) -> datasets.DatasetDict:
        """What there is to read, by split.

        Raises:
            ValueError: there is no such file, data set or configuration, or it cannot be read; the message says why.
        """
        place = Path(self.path).expanduser()
        if not place.exists() and (place.suffix.lower() in READERS or self.path.startswith((".", "/", "~"))):
            raise ValueError(f"task.path={self.path}: there is no such file or directory")
        if place.is_file() and place.suffix.lower() not in READERS:
            raise ValueError(f"task.path={self.path}: a file is one of {', '.join(READERS)}")
        if place.is_file() and not place.stat().st_size:
            raise ValueError(f"task.path={self.path}: the file is empty")
        files = _files(place)
        for file in files:
            _refuse_doubles(file)
        try:
            with _silent():
                found = self._read(place, files)
        except (datasets.exceptions.DatasetsError, pa.ArrowException, OSError, ValueError, KeyError) as error:
            none = place.is_dir() and not files
            reason = f"there is no file of {', '.join(READERS)} in it" if none else _reason(error)
            raise ValueError(f"task.path={self._place}: it cannot be read: {reason}") from error
        for split, rows in found.items():
            if any(name.startswith("__index_level_") for name in rows.column_names):
                raise ValueError(
                    f"{self.where(str(split))} has rows with more fields than the first line has names: put quotes "
                    f"around a text with the separator in it"
                )
        return found

    def _read(self, place: Path, files: Sequence[Path]) -> datasets.DatasetDict:
        cache = self._cache(place)
        if place.is_file():
            suffix = place.suffix.lower()
            options = {**(CSV if READERS[suffix] == "csv" else {}), **({"sep": "\t"} if suffix == ".tsv" else {})}
            given = {self.train_split: str(place)}
            return datasets.load_dataset(READERS[suffix], data_files=given, cache_dir=cache, **options)
        path = str(place) if place.is_dir() else self.path
        options = CSV if files and all(READERS[file.suffix.lower()] == "csv" for file in files) else {}
        return datasets.load_dataset(path, self.configuration, cache_dir=cache, **options)

    def _cache(self, place: Path) -> str | None:
        """Where `datasets` keeps its copy of local files: two of one name, or with other contents, are the same to it.
        None, its own choice, for the hub's data."""
        if not place.exists():
            return None
        listed = sorted(place.resolve().rglob("*")) if place.is_dir() else [place.resolve()]
        files = [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in listed]
        return str(Path(datasets.config.HF_DATASETS_CACHE) / hashlib.sha256(repr(files).encode()).hexdigest()[:16])


@contextmanager
def _silent() -> Iterator[None]:
    """Without what `datasets` writes of an error that it raises."""
    logger = logging.getLogger("datasets")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _reason(error: BaseException) -> str:
    """What is wrong, in a few words: the first of the errors that led to one another."""
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, datasets.table.CastError):
        return f"its files have other columns, {error.table_column_names} and {error.requested_column_names}"
    words = " ".join(str(error).split()) or type(error).__name__
    if "corresponds to no data" in words:  # of a file with a header alone
        return "it has no rows"
    words = words.partition(" Please either edit the data files")[0].partition(" Example of usage")[0]
    if "Config name is missing" in words:
        words = f"give its configuration, task.configuration=...: {words}"
    return words if len(words) <= MOST else f"{words[:MOST]} ..."


def _files(place: Path) -> list[Path]:
    """The files of a local place that hold rows."""
    listed = place.rglob("*") if place.is_dir() else [place]
    return sorted(file for file in listed if file.is_file() and file.suffix.lower() in READERS)


def _refuse_doubles(file: Path) -> None:
    """A ValueError where two columns of a CSV or TSV file have one name: which of them is read would be chance."""
    if READERS[file.suffix.lower()] != "csv":
        return
    with file.open(newline="", encoding="utf-8-sig", errors="replace") as opened:
        header = next(csv.reader(opened, delimiter="\t" if file.suffix.lower() == ".tsv" else ","), [])
    doubles = [name for name, count in Counter(header).items() if count > 1 and name]
    if doubles:
        raise ValueError(f"{file}: two columns are called {doubles[0]!r}; it has {header}")
