"""What is said and drawn of a bench, from fabricated times."""

import json
from itertools import combinations

import pytest

from nxmiformer.bench.clock import Time, summarised
from nxmiformer.figures.speed import speed
from nxmiformer.report.document import write_bench
from nxmiformer.runs import words
from nxmiformer.runs.speeds import best, findings, headline, middle, read_bench

SHAPES = [(batch, length) for length in (32, 128, 384) for batch in (1, 8, 32)]
PACES = {"dense fp32": 1.0, "dense bf16": 0.8, "packed": 1.4, "onnx": 0.25, "onnx unpruned": 0.25}


def made(paces=PACES, shapes=SHAPES, waited=1.0, threads=1, **changes):
    """The content of a bench in which a contender takes `paces` times the dense model's time, a number or by shape."""
    cells = []
    for batch, length in shapes:
        base = batch * length / 1000
        own = {name: pace[batch, length] if isinstance(pace, dict) else pace for name, pace in paces.items()}
        taken = {n: [Time(base * p * s, base * p * s / waited) for s in (0.9, 1, 1.2)] for n, p in own.items()}
        cells.append({"batch": batch, "length": length, "timings": summarised(taken, batch, "dense fp32")})
    contenders = {name: {"how": f"how {name} works", "bytes": 10**7, "control": None} for name in paces}
    if "onnx unpruned" in paces:
        contenders["onnx unpruned"]["control"] = "onnx"
    return {
        "format": 1,
        "device": f"x86_64, {threads} threads",
        "capability": "AVX512",
        "threads": threads,
        "baseline": "dense fp32",
        "contenders": contenders,
        "left_out": {},
        "too_long": [],
        "memory": {},
        "cells": cells,
    } | changes


def test_what_gains_at_no_shape_is_told_with_its_way_to_compute_and_nothing_else_is():
    told = findings(made())
    assert [line for line in told if "gains nothing" in line] == [
        "packed gains nothing on this device: 0.71 times the throughput of dense fp32 (how packed works)."
    ]
    assert "onnx gains at every shape: 4.00 times the throughput of dense fp32." in told
    assert not any("gains nothing" in line for line in findings(made({"dense fp32": 1.0, "onnx": 0.5})))


def test_a_gain_below_a_twentieth_is_none():
    assert "x gains nothing" in " ".join(findings(made({"dense fp32": 1.0, "x": 1 / 1.04})))
    assert "x gains at every shape" in " ".join(findings(made({"dense fp32": 1.0, "x": 1 / 1.06})))


def test_a_gain_at_some_shapes_names_the_others():
    paces = {"dense fp32": 1.0, "bf16": {shape: 0.5 if shape[0] > 1 else 1.0 for shape in SHAPES}}
    expected = "bf16 gains at 6 of 9 shapes, 2.00 times the throughput of dense fp32; nothing at "
    places = "batch 1, length 32; batch 1, length 128 and batch 1, length 384."
    assert expected + places in findings(made(paces))


@pytest.mark.parametrize(
    ("unpruned", "verdict"), [(0.25, "gain nothing: in the mean 1.00 times"), (0.5, "gain: in the mean 2.00 times")]
)
def test_what_zeros_gain_is_told_by_the_same_grids_without_them(unpruned, verdict):
    told = findings(made({**PACES, "onnx unpruned": unpruned}))
    (line,) = [line for line in told if line.startswith("The zeros")]
    assert line.startswith(f"The zeros of onnx {verdict} the throughput of the same grids without a pattern")
    assert not any(line.startswith("onnx unpruned") for line in told)


def test_what_was_left_out_and_is_too_long_is_told():
    told = findings(made(left_out={"old": "it is an export of plan 1"}, too_long=[600]))
    assert told[-2:] == ["old is left out: it is an export of plan 1.", "Too long for the model: 600 tokens."]


def test_a_busy_machine_is_told_by_the_time_on_the_processor_of_one_thread():
    (line,) = [line for line in findings(made(waited=1.5)) if "busy" in line]
    assert "at batch 8, length 128 dense fp32 took 1.50 times its time on the processor" in line
    assert "onnx 4.00" in line
    for quiet in (made(), made(waited=1.5, threads=2), made(waited=1.5, device="NVIDIA H100")):
        assert not any("busy" in line for line in findings(quiet))


def test_the_headline_is_of_the_middle_shape_and_claims_no_gain_where_there_is_none():
    assert middle(made()) == (8, 128)
    assert best(made()) == (4.0, "onnx", (8, 128))
    expected = "onnx is 4.0 times as fast as dense fp32, at batch 8, length 128; packed gains nothing"
    assert headline(made()) == expected
    paces = {"dense fp32": 1.0, "packed": 1.5, "packed lazy": 2.0}
    assert headline(made(paces)) == "nothing gains over dense fp32 at batch 8, length 128"


@pytest.mark.parametrize("shapes", [SHAPES, SHAPES[:-1], [(1, 4)], [(1, 4), (1, 8)], [(1, 4), (64, 4)]], ids=len)
def test_the_figure_names_every_contender_and_no_name_hides_another(shapes):
    paces = {**PACES, "packed lazy": 1.41, "dense onnx": 0.79}
    figure = speed(made(paces, shapes))
    figure.draw_without_rendering()
    assert len(figure.axes) == len({length for _, length in shapes})
    texts = figure.axes[-1].texts
    assert {text.get_text().split("  ")[0] for text in texts} == paces.keys() - {"dense fp32", "onnx unpruned"}
    for a, b in combinations([text.get_window_extent() for text in texts], 2):
        assert not a.overlaps(b)


def test_the_figure_draws_the_ratios():
    figure = speed(made())
    for ax in figure.axes:
        lines = [line for line in ax.lines if line.get_marker() == "o" and line.get_transform() == ax.transData]
        drawn = sorted(float(line.get_ydata()[0]) for line in lines)
        assert drawn == pytest.approx(sorted([1 / 0.8, 1 / 1.4, 4.0]))


def test_a_bench_is_read_and_drawn_from_its_directory_and_a_damaged_one_is_named(tmp_path):
    file = tmp_path / "bench.json"
    file.write_text(json.dumps(made()))
    assert read_bench(tmp_path) == json.loads(file.read_text())
    assert write_bench(tmp_path)["speed"].read_bytes().startswith(b"\x89PNG")
    file.write_text(json.dumps(made(format=2)))
    with pytest.raises(ValueError, match=r"bench.json: its format is 2, not 1"):
        read_bench(tmp_path)


def test_latencies_have_three_digits():
    assert [words.latency(s) for s in (0.0012345, 0.012345, 0.12345, 1.2345, 12.345)] == [
        "1.23 ms",
        "12.3 ms",
        "123 ms",
        "1.23 s",
        "12.3 s",
    ]
