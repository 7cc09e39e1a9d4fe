from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from startsparse.schedules import FRACTIONS, Window, as_step, cubic, drop_fraction

quick = settings(max_examples=100, deadline=None, derandomize=True)


@pytest.mark.parametrize(
    ("value", "total", "step"),
    [(0, None, 0), (7, None, 7), (7, 3, 7), (1, 100, 1), (0.0, 100, 0), (1.0, 100, 100), (0.75, 1000, 750)],
)
def test_ints_are_steps_and_floats_are_fractions(value, total, step):
    found = as_step(value, total, "update_end")
    assert (found, type(found)) == (step, int)


@pytest.mark.parametrize(
    ("value", "total", "message"),
    [
        (-1, 100, "update_end must be a step"),
        (-0.1, 100, "update_end must be a step"),
        (math.nan, 100, "update_end must be a step"),
        (math.inf, 100, "update_end must be a step"),
        (True, 100, "update_end must be a step"),
        ("half", 100, "update_end must be a step"),
        (None, 100, "update_end must be a step"),
        (1.5, 100, "update_end=1.5 is not a fraction of the run: write an int"),
        (0.5, None, "update_end=0.5 is a fraction of the run: give total_steps="),
    ],
)
def test_other_bounds_are_refused(value, total, message):
    with pytest.raises(ValueError, match=message):
        as_step(value, total, "update_end")


@quick
@given(st.integers(0, 30), st.integers(0, 60), st.integers(1, 12))
def test_a_window_by_enumeration(begin, end, interval):
    window = Window(begin, end, interval)
    due = [step for step in range(100) if window.due(step)]
    assert due == [step for step in range(begin, end) if step % interval == 0]
    assert not window.due(-1)
    if due:
        assert (window.first, window.last) == (due[0], due[-1])
    else:
        assert window.last < window.first
    for step in range(100):
        assert window.over(step) == (not any(later >= step for later in due)), step


@pytest.mark.parametrize("kind", FRACTIONS)
@pytest.mark.parametrize("start", [0.0, 0.3, 1.0])
def test_drop_fractions_fall_from_start_to_zero(kind, start):
    values = [drop_fraction(kind, start, step, 100) for step in range(121)]
    assert values[0] == start
    assert all(0 <= value <= start for value in values)
    if kind == "constant":
        assert set(values) == {start}
        return
    assert values[100:] == [0.0] * 21
    if kind == "steps":
        assert values[:100] == [start] * 75 + [start / 2] * 25
        return
    assert values[50] == pytest.approx(start / 2)
    assert values == sorted(values, reverse=True)
    expected = [
        start / 2 * (1 + math.cos(math.pi * t / 100)) if kind == "cosine" else start * (100 - t) / 100
        for t in range(101)
    ]
    assert values[:101] == pytest.approx(expected, abs=1e-15)


def test_a_run_without_updates_drops_nothing():
    assert drop_fraction("cosine", 0.3, 0, 0) == drop_fraction("linear", 0.3, 5, 0) == 0.0


@quick
@given(st.floats(0.01, 1), st.floats(0.001, 1), st.floats(0, 1))
def test_the_cubic_curve(start, final, progress):
    expected = final + (start - final) * (1 - progress) ** 3
    assert cubic(start, final, progress) == pytest.approx(expected)
    assert cubic(start, final, 0.0) == pytest.approx(start)
    assert cubic(start, final, 1.0) == final
    assert cubic(start, final, 2.0) == final
    assert cubic(start, final, -1.0) == cubic(start, final, 0.0)


def test_the_cubic_curve_of_the_paper():
    """Zhu and Gupta 2017, sparsity 0 to 87.5 % in four prunings: 1 - s_t = 1 - s_f + s_f (1 - t / 4)^3."""
    assert [cubic(1.0, 0.125, t / 4) for t in range(5)] == pytest.approx(
        [1.0, 0.494140625, 0.234375, 0.138671875, 0.125]
    )
