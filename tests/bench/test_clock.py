"""What is timed, in which order, and what is made of the times."""

import functools
import os

import numpy as np
import pytest

from nxmiformer.bench.clock import LEAST, Bench, Time, interleaved, peak_memory, summarised


class Machine:
    """A clock that only the work moves, each by its own pace, and a record of what was run."""

    def __init__(self, **paces):
        self.wall, self.ran = 0.0, []
        self.runs = {name: functools.partial(self.work, name, pace) for name, pace in paces.items()}

    def work(self, name, pace):
        self.ran.append(name)
        self.wall += pace

    def __call__(self):
        return Time(self.wall, self.wall / 2)


def rounds(machine, bench):
    """What ran, by round."""
    size = len(machine.runs)
    return [machine.ran[start : start + size] for start in range(0, len(machine.ran), size)]


@pytest.mark.parametrize("warmup", [0, 2])
def test_every_round_runs_each_once_and_warm_up_rounds_are_not_timed(warmup):
    machine, bench = Machine(a=1.0, b=2.0, c=4.0), Bench(repeats=7, warmup=warmup, seconds=1e9)
    taken = interleaved(machine.runs, bench, machine)
    assert [sorted(each) for each in rounds(machine, bench)] == [["a", "b", "c"]] * (7 + warmup)
    assert taken == {"a": [(1.0, 0.5)] * 7, "b": [(2.0, 1.0)] * 7, "c": [(4.0, 2.0)] * 7}


def test_the_order_in_a_round_changes_and_is_the_same_in_another_bench():
    orders = []
    for _ in range(2):
        machine, bench = Machine(a=1.0, b=1.0, c=1.0), Bench(repeats=20, warmup=0)
        interleaved(machine.runs, bench, machine)
        orders.append(rounds(machine, bench))
    assert orders[0] == orders[1]
    assert {order[0] for order in orders[0]} == {"a", "b", "c"}


@pytest.mark.parametrize(("seconds", "expected"), [(0, LEAST), (9, LEAST), (15.5, 6), (1e9, 10)])
def test_rounds_end_when_the_time_is_up_but_not_before_there_is_a_median(seconds, expected):
    machine = Machine(a=1.0, b=2.0)
    taken = interleaved(machine.runs, Bench(repeats=10, warmup=1, seconds=seconds), machine)
    assert {len(times) for times in taken.values()} == {expected}


def test_medians_quartiles_throughput_and_ratio_come_of_the_same_rounds():
    slow, fast = [4.0, 8.0, 6.0, 100.0, 7.0], [2.0, 1.0, 3.0, 50.0, 2.0]
    taken = {name: [Time(wall, 1.0) for wall in walls] for name, walls in (("slow", slow), ("fast", fast))}
    found = summarised(taken, 8, "slow")
    assert (found["slow"]["median"], found["fast"]["median"]) == (7.0, 2.0)
    assert found["fast"]["quartiles"] == [2.0, 3.0]
    assert found["fast"]["throughput"] == 8 / 2.0
    assert (found["fast"]["ratio"], found["slow"]["ratio"]) == (3.5, 1.0)
    assert found["slow"]["seconds"] == slow
    assert found["slow"]["processor"] == 1.0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batches": []}, r"bench.batches=\[\]: whole numbers of at least 1"),
        ({"lengths": [8, 0]}, r"bench.lengths=\[8, 0\]"),
        ({"lengths": [8.5]}, r"bench.lengths=\[8.5\]"),
        ({"batches": [True]}, r"bench.batches=\[True\]"),
        ({"repeats": 2}, "bench.repeats=2: a median takes at least 3"),
        ({"warmup": -1}, "bench.warmup=-1"),
        ({"seconds": float("nan")}, "bench.seconds=nan"),
    ],
    ids=str,
)
def test_a_bench_that_measures_nothing_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Bench(**values)


def test_shapes_are_sorted_and_each_is_timed_once():
    assert Bench(batches=[8, 1, 8]).batches == (1, 8)


def fill(megabytes):
    np.ones(megabytes * 2**20, dtype=np.uint8)


def test_the_peak_memory_of_work_is_its_own_and_not_what_this_process_had():
    mine = np.ones(300 * 2**20, dtype=np.uint8)  # which no child may be charged with
    small, large = (peak_memory(functools.partial(fill, size), ["nxmiformer.bench.clock"])["host"] for size in (1, 201))
    assert small < 50 * 2**20 < mine.nbytes
    assert large - small == pytest.approx(200 * 2**20, rel=0.2)


def leave():
    os._exit(3)


def test_a_process_that_is_killed_while_it_is_measured_is_an_error_and_no_endless_wait():
    with pytest.raises(RuntimeError, match="terminated abruptly"):
        peak_memory(leave, ["nxmiformer.bench.clock"])
