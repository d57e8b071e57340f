"""The console's tables in terminals of any width."""

import io

from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from nxmiformer.report.content import Table
from nxmiformer.report.table import _table

WORDS = st.text("abc:+=[]", min_size=1, max_size=12)
NAMES = st.lists(WORDS, min_size=1, max_size=3).map(" ".join)
NUMBERS = st.one_of(st.floats(0, 100).map(lambda x: f"{x:.2f} %"), st.integers(0, 10**7).map(lambda x: f"{x:,}"))


def shown(table, columns):
    stream = io.StringIO()
    Console(file=stream, width=columns).print(_table(table))
    return stream.getvalue().splitlines()


@st.composite
def tables(draw):
    names, numbers, rows = draw(st.integers(1, 2)), draw(st.integers(1, 7)), draw(st.integers(1, 4))
    header = [f"{draw(NAMES)} {index}" for index in range(names + numbers)]
    body = [
        tuple(draw(NAMES) for _ in range(names)) + tuple(draw(NUMBERS) for _ in range(numbers)) for _ in range(rows)
    ]
    return Table(tuple(header), tuple(body), named=names)


@settings(max_examples=60)
@given(table=tables(), columns=st.sampled_from([60, 80]))
def test_a_table_fits_and_no_number_of_it_is_cut_and_what_has_no_room_is_named(table, columns):
    lines = shown(table, columns)
    assert max(map(len, lines)) <= columns
    text = " ".join(" ".join(lines).split())
    missing = text.partition("no room for: ")[2]
    for index, name in enumerate(table.header[table.named :], start=table.named):
        left_out = name in missing
        for row in table.rows:
            assert left_out or any(row[index] in line for line in lines)


@given(table=tables())
def test_a_table_that_has_room_is_whole_and_each_row_a_line(table):
    lines = shown(table, 400)
    assert not any("no room" in line for line in lines)
    for row in table.rows:
        assert any(all(cell in line for cell in row) for line in lines)
