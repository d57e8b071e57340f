import io
import multiprocessing
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from nxmiformer.console import display as module
from nxmiformer.console.display import EVERY, Bars, Display, Work


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes on only when it is told to."""

    class Clock:
        now = 100.0

        def wait(self, seconds):
            self.now += seconds

    made = Clock()
    monkeypatch.setattr(time, "monotonic", lambda: made.now)
    return made


@pytest.fixture
def bars(clock, monkeypatch):
    """Bars on a terminal of so many columns, and what they write there."""

    def make(columns, label=""):
        surface, stream = Bars(label), io.StringIO()
        surface.console = Console(file=stream, force_terminal=True, width=columns, color_system=None)
        shown = Display(shown=False)
        shown.surface = surface
        return shown, stream

    return make


def test_without_a_terminal_work_is_a_line_when_it_begins_and_ends_and_every_few_seconds_between(clock, capsys):
    shown = Display()
    with shown.work("admm", 40) as work:
        for _ in range(40):
            clock.wait(EVERY / 10)
            shown.step(work, "loss 0.5")
    lines = capsys.readouterr().err.splitlines()
    steps = [int(line.split()[1].partition("/")[0]) for line in lines]
    assert steps == [0, 10, 20, 30, 40]
    assert lines[1] == "admm 10/40, 0:00:15 left, loss 0.5"
    assert lines[-1] == "admm 40/40, took 0:00:20, loss 0.5"


@given(total=st.integers(2, 500), first=st.integers(0, 100), each=st.floats(0.01, 1000), data=st.data())
def test_the_time_left_of_work_at_an_even_pace_is_that_of_the_steps_left(total, first, each, data):
    done = data.draw(st.integers(1, total - 1))
    work = Work("dense", first + total, first, brief=False)
    work.done, work.began = first + done, time.monotonic() - done * each
    hours, minutes, seconds = str(work).split(", ")[-1].removesuffix(" left").replace(" days", "").split(":")
    if "day" not in str(work):
        left = 3600 * int(hours) + 60 * int(minutes) + int(seconds)
        assert left == pytest.approx((total - done) * each, abs=1, rel=1e-3)


def test_each_line_begins_with_the_name_of_its_job(clock, capsys):
    shown = Display("job 3")
    shown.say("reading")
    assert list(shown.tracked(iter("ab"), "layers", 2)) == ["a", "b"]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("job 3: ") for line in lines)


def test_brief_work_is_shown_only_where_it_lasts(clock, capsys):
    shown = Display()
    with shown.work("dense", 2) as work:
        capsys.readouterr()
        assert len(list(shown.tracked(range(5), "holdout", 5, brief=True))) == 5
        assert capsys.readouterr().err == ""
        for _ in shown.tracked(range(5), "holdout", 5, brief=True):
            clock.wait(EVERY)
        assert "holdout 2/5" in capsys.readouterr().err
        shown.step(work)


def test_nothing_is_shown_of_no_work_and_by_what_is_silent(clock, capsys):
    assert list(Display().tracked([], "layers", 72)) == []
    with Display().work("one_shot", 0):
        pass
    silent = Display(shown=False)
    silent.say("reading")
    with silent.work("dense", 1) as work:
        silent.step(work)
    assert capsys.readouterr().err == ""


def test_work_that_is_broken_off_is_not_said_to_be_done(clock, capsys):
    shown = Display()

    def broken():
        with shown.work("dense", 2) as work:
            shown.step(work)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        broken()
    assert "took" not in capsys.readouterr().err


@pytest.mark.parametrize("columns", [60, 80])
def test_a_row_fits_its_terminal_keeps_steps_and_time_and_shows_names_as_they_are(bars, clock, columns):
    shown, stream = bars(columns, "job [bold]3[/bold]")
    with shown.work("admm[x]", 1800) as work:
        for _ in range(120):
            clock.wait(1)
            shown.step(work, "loss 0.6602, accuracy 0.5075, gap 0.123, and more than there is room for")
    rows = stream.getvalue().replace("\r", "\n").splitlines()
    assert max(map(len, rows)) <= columns + len("\x1b[2K\x1b[?25h")
    assert "job [bold]3[/bold]: admm[x] 120/1800, 0:28:00 left" in stream.getvalue()
    shown.say("[red]x")
    assert stream.getvalue().endswith("job [bold]3[/bold]: [red]x\n")


def test_rows_are_left_when_work_ends_and_those_of_brief_work_go(bars, clock):
    shown, stream = bars(80)
    with shown.work("dense", 2) as work:
        for _ in shown.tracked(range(3), "holdout", 3, brief=True):
            clock.wait(3)
        assert "holdout 2/3" in stream.getvalue()
        shown.step(work)
        shown.step(work)
    last = stream.getvalue().rpartition("\x1b[2K")[2]
    assert "dense 2/2" in last
    assert "holdout" not in last
    assert shown.surface.live is None


def test_one_of_several_processes_draws_no_bars(monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(module, "Console", lambda **_: type("C", (), {"is_interactive": True, "width": 80})())
    assert isinstance(Display().surface, Bars)
    monkeypatch.setattr(multiprocessing.current_process(), "name", "LokyProcess-1", raising=False)
    assert not isinstance(Display().surface, Bars)
