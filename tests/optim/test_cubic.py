import pytest

from nxmiformer.optim.cubic import Cubic, occasions


def test_the_course_is_two_plateaus_and_a_cubic_between_them():
    course = Cubic(0.0, 0.1, 100, before=0.1, after=0.4)
    assert [course.at(step) for step in (0, 5, 10)] == [0.0] * 3
    assert [course.at(step) for step in (60, 80, 100, 999)] == [0.1] * 4
    for step in range(10, 61):
        assert course.at(step) == pytest.approx(0.1 - 0.1 * (1 - (step - 10) / 50) ** 3)


def test_it_is_that_of_the_authors_code():
    """nn_pruning counts plateaus in multiples of the learning rate's warm-up, and has a value after each step."""
    start, end, warmup, initial, final, steps = 1.0, 0.2, 10, 1, 3, 200
    course = Cubic(start, end, steps, initial * warmup / steps, final * warmup / steps)
    for step in range(steps):
        if step <= initial * warmup:
            theirs = start
        elif step > steps - final * warmup:
            theirs = end
        else:
            left = 1 - (step - initial * warmup) / (steps - (initial + final) * warmup)
            theirs = end + (start - end) * left**3
        assert course.at(step) == pytest.approx(theirs)


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_a_phase_of_hardly_any_steps_ends_where_it_is_to(steps):
    course = Cubic(1.0, 0.5, steps, 0.1, 0.1)
    assert course.at(steps) == 0.5
    assert course.at(0) == (1.0 if steps else 0.5)


@pytest.mark.parametrize(("values", "message"), [
    ((0.0, 1.0, -1), "0 steps or more, not -1"),
    ((0.0, 1.0, 5, 0.7, 0.4), "together at most 1, not 0.7 and 0.4"),
    ((0.0, 1.0, 5, -0.1), "together at most 1, not -0.1 and 0.0"),
])  # fmt: skip
def test_a_course_that_there_is_not_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Cubic(*values)


def test_the_traces_of_the_papers_come_out():
    """Zafrir et al. 2021: 90 % reached at half of the steps. Kurtic et al. 2022: seven prunings from 70 to 90 %."""
    course = Cubic(0.0, 90.0, 100, after=0.5)
    assert [round(course.at(step), 1) for step in (1, 5, 10, 25, 50)] == [5.3, 24.4, 43.9, 78.8, 90.0]
    assert course.at(1) == pytest.approx(5.29, abs=0.005)
    seven = Cubic(70.0, 90.0, 6)
    assert [round(seven.at(number), 1) for number in range(7)] == [70.0, 78.4, 84.1, 87.5, 89.3, 89.9, 90.0]


def test_occasions_are_even_between_the_plateaus_and_within_the_phase():
    assert occasions(7, 30, 2 / 30, 4 / 30) == [2, 6, 10, 14, 18, 22, 26]
    assert occasions(1, 30, 0.1, 0.5) == [3]
    assert occasions(3, 1, 0.0, 0.0) == [0, 0, 0]
    assert max(occasions(5, 10, 0.0, 0.0)) == 9
