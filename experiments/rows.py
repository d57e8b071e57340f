"""The results of a study, written as they come: a table in a file, and nothing that takes long to import."""

import csv
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


class Rows:
    """A table in a file, whose rows are found by the values of its first columns. Threads may share it."""

    def __init__(self, file: Path, cell: Sequence[str], values: Sequence[str]) -> None:
        self.file, self.cell, self.columns = file, tuple(cell), (*cell, *values)
        self._writing = Lock()

    def read(self) -> list[dict[str, str]]:
        """All rows."""
        if not self.file.exists():
            return []
        with self.file.open(newline="") as opened:
            return list(csv.DictReader(opened))

    def of(self, cell: Mapping[str, Any]) -> dict[str, str] | None:
        """The row of this cell, if it is there."""
        key = [str(cell[name]) for name in self.cell]
        return next((row for row in self.read() if [row[name] for name in self.cell] == key), None)

    def add(self, row: Mapping[str, Any]) -> bool:
        """Append a row, unless its cell has one, and see to it that it is on the disk; whether it was appended."""
        with self._writing:
            if self.of(row) is not None:
                return False
            first = not self.file.exists()
            with self.file.open("a", newline="") as opened:
                writer = csv.DictWriter(opened, self.columns, lineterminator="\n")
                if first:
                    writer.writeheader()
                writer.writerow(row)
                opened.flush()
                os.fsync(opened.fileno())
        return True


def spread(values: "pd.Series", digits: int) -> str:
    """The mean, and the standard deviation where there are several values; a dash where there is none."""
    if not len(values):
        return "–"
    return f"{values.mean():.{digits}f}" + (f" ± {values.std():.{digits}f}" if len(values) > 1 else "")


def insert_table(page: Path, table: str) -> None:
    """Put a table between the marks of a page, in the place of what is there."""
    text, count = re.subn(
        r"(<!-- made by \S+ -->\n).*?(<!-- end -->)",
        lambda found: f"{found[1]}{table}\n{found[2]}",
        page.read_text(),
        flags=re.S,
    )
    if count != 1:
        raise SystemExit(f"{page} needs the marks of the table once, not {count} times")
    page.write_text(text)
