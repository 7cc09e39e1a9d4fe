"""Subset sums: exact against all subsets, and how many numbers they need as the density falls."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from startsparse.theory.subset_sums import closest, numbers_needed, numbers_safe, solve


def brute(values: np.ndarray, wanted: float) -> float:
    subsets = itertools.product((0, 1), repeat=len(values))
    return min(abs(float(values @ np.array(subset)) - wanted) for subset in subsets)


@pytest.mark.parametrize("number", [0, 1, 2, 5, 9])
def test_closest_is_the_closest_of_all_subsets(number):
    random = np.random.default_rng(number)
    for _ in range(20):
        values, wanted = random.uniform(-1, 1, number), float(random.uniform(-1, 1))
        chosen, error = closest(values, wanted)
        assert error == pytest.approx(brute(values, wanted), abs=1e-12)
        assert abs(values[chosen].sum() - wanted) == pytest.approx(error, abs=1e-12)
        assert len(set(chosen.tolist())) == len(chosen)


def test_an_integer_program_finds_nothing_closer():
    """HiGHS, which knows nothing of halves, on a problem too large for trying."""
    optimize = pytest.importorskip("scipy.optimize")
    random = np.random.default_rng(3)
    values, wanted = random.integers(-999, 1000, 16).astype(float), 1234.0
    rows = np.array([[*values, -1.0], [*values, 1.0]])
    limits = optimize.LinearConstraint(rows, [-np.inf, wanted], [wanted, np.inf])
    found = optimize.milp(
        [*[0.0] * 16, 1.0],
        constraints=limits,
        integrality=[*[1] * 16, 0],
        bounds=optimize.Bounds(0, [*[1] * 16, 1e4]),
    )
    assert found.success and round(found.fun) == round(closest(values, wanted)[1])


def test_solve_keeps_its_tolerance_and_finds_what_there_is():
    random = np.random.default_rng(1)
    for _ in range(60):
        values, wanted = random.uniform(-1, 1, 8), float(random.uniform(-1, 1))
        chosen = solve(values, wanted, 0.02)
        assert (chosen is not None) == (brute(values, wanted) <= 0.02)
        if chosen is not None:
            assert abs(values[chosen].sum() - wanted) <= 0.02
    assert len(solve(values, 0.001, 0.02)) == 0, "zero is the empty sum"


def test_few_small_numbers_are_preferred():
    assert solve(np.array([0.9, -0.4, 0.3, 0.2]), 0.5, 1e-9).tolist() == [2, 3]


def test_too_many_numbers():
    with pytest.raises(ValueError, match="at most 40 numbers"):
        closest(np.zeros(41), 0.0)


def share_solved(number: int, density: float, tolerance: float, trials: int, seed: int) -> float:
    random, solved = np.random.default_rng(seed), 0
    for _ in range(trials):
        values = random.uniform(-1, 1, number)
        there = values[random.random(number) < density]
        solved += closest(there[:40], float(random.uniform(-1, 1)))[1] <= tolerance
    return solved / trials


def needed(density: float, tolerance: float, trials: int = 300) -> int:
    """The number with which 95 % of problems are solved, by bisection; the share grows with the number."""
    low, high = round(8 / density), round(20 / density)
    while low < high:
        middle = (low + high) // 2
        if share_solved(middle, density, tolerance, trials, middle) >= 0.95:
            high = middle
        else:
            low = middle + 1
    return low


def test_the_number_needed_times_the_density_is_constant():
    products = [p * needed(p, 0.01) for p in (1.0, 0.6, 0.3)]
    middle = float(np.mean(products))
    assert all(abs(product / middle - 1) <= 0.2 for product in products), products
    assert abs(numbers_needed(1.0, 0.01, 0.05) - products[0]) <= 2


def test_numbers_safe_are_safe():
    for density, tolerance, delta in ((1.0, 0.03, 0.05), (0.5, 0.01, 0.02), (0.3, 0.1, 0.02)):
        assert share_solved(numbers_safe(density, tolerance, delta), density, tolerance, 300, 5) >= 1 - delta
