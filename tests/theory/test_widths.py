"""Width factors, their lower bound and the closed forms, against hand-made tables and draws."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from startsparse import theory
from startsparse.theory.widths import Link, factors, rarity


@pytest.mark.parametrize(
    ("density", "expected"),
    [
        (0.5, [23, 19, 1]),
        (0.3, [47, 37, 1]),
        (0.2, [77, 58, 1]),
        (0.1, [169, 123, 1]),
        (0.05, [360, 252, 1]),
        (0.01, [1996, 1284, 1]),
    ],
)
def test_golden_factors_of_two_layers(density, expected):
    assert theory.width_factors([100 * 100] * 2, density, delta=0.05) == expected


def test_golden_factors_of_deeper_targets():
    assert theory.width_factors([10_000] * 4, 0.5, 0.05) == [25, 25, 24, 20, 1]
    assert theory.width_factors([10_000] * 4, 0.1, 0.05) == [179, 179, 176, 130, 1]
    assert theory.width_factors([40, 64, 24], 0.5, 0.1) == [15, 15, 10, 1]
    assert theory.width_factors([40, 64, 24], 0.1, 0.1) == [113, 112, 63, 1]


def test_factors_by_hand():
    # one layer of 8 weights, p = 1/2, delta = 1/4: log2(1 * 8 * 1 / (1/4)) = 5
    assert theory.width_factors([8], 0.5, 0.25) == [5, 1]
    # and one before it: log2(2 * 2 * 6 / (1/4)) = log2(96), behind log2(2 * 8 / (1/4)) = 6
    assert theory.width_factors([2, 8], 0.5, 0.25) == [7, 6, 1]
    assert theory.width_factors([8, 8], 1.0, 0.25) == [1, 1, 1]
    assert theory.width_factors([8, 8], [0.5, 1.0], 0.25) == [6, 1, 1]


def test_factors_meet_the_union_bound_and_not_with_one_less():
    for density, delta in itertools.product((0.6, 0.3, 0.05), (0.3, 0.01)):
        counts = [120, 300, 40]
        q = theory.width_factors(counts, density, delta)
        shares = [m * q[i + 1] * (1 - density) ** q[i] for i, m in enumerate(counts)]
        assert all(share <= delta / 3 * (1 + 1e-9) for share in shares)
        less = [m * q[i + 1] * (1 - density) ** (q[i] - 1) for i, m in enumerate(counts)]
        assert all(share > delta / 3 for share in less)
        success = theory.success_probability(counts, density, q)
        assert 1 - delta <= success <= 1 - sum(shares) + sum(shares) ** 2 / 2


def test_success_of_the_worked_example():
    by_hand = (1 - 2.0**-15) ** (40 * 15 + 64 * 10) * (1 - 2.0**-10) ** 24
    assert theory.success_probability([40, 64, 24], 0.5, [15, 15, 10, 1]) == pytest.approx(by_hand, rel=1e-12)


def test_success_against_draws():
    """Every copy of every unit finds its parents: the closed form, on masks drawn by numpy."""
    density, dims, q = 0.4, (3, 4, 2), (6, 5, 1)
    random, trials, wins = np.random.default_rng(0), 4000, 0
    for _ in range(trials):
        wins += all(
            (random.random((dims[i + 1] * q[i + 1], dims[i], q[i])) < density).any(2).all() for i in range(2)
        )
    exact = theory.success_probability([12, 8], density, q)
    assert abs(wins / trials - exact) < 4 * math.sqrt(exact * (1 - exact) / trials)


def test_tied_groups_have_one_factor():
    links = [
        Link(9, 0.5, "in", "s"),
        Link(50, 0.5, "s", "h"),
        Link(50, 0.5, "h", "s"),
        Link(8, 0.5, "s", "out"),
    ]
    q = factors(links, 0.1, 4, {"out": 1})
    for link in links:
        assert link.weights * q[link.writes] * 0.5 ** q[link.reads] <= 0.1 / 4
    assert q["out"] == 1 and abs(q["s"] - q["h"]) <= 1


def test_asymptotics():
    assert [round(1 / rarity(p), 2) for p in (0.5, 0.3, 0.1, 0.05, 0.01)] == [1.44, 2.8, 9.49, 19.5, 99.5]


@pytest.mark.parametrize("output_density", [1.0, 0.6])
def test_hidden_layer_success_against_draws_in_every_cell(output_density):
    """Necessity: an input that loses all its edges is lost; 24 cells, 3 standard errors in at least 95 % of them."""
    random, trials, inside = np.random.default_rng(1), 2500, 0
    cells = list(itertools.product((0.5, 0.3, 0.2, 0.1), (5, 30), (8, 16, 32)))
    for density, inputs, width in cells:
        edges = random.random((trials, inputs, width)) < density
        used = random.random((trials, 1, width)) < output_density
        seen = (edges & used).any(2).all(1).mean()
        exact = theory.hidden_layer_success(inputs, width, density, output_density)
        inside += abs(seen - exact) <= 3 * math.sqrt(max(exact * (1 - exact), 1e-4) / trials)
    assert len(cells) == 24 and inside >= 0.95 * len(cells)


def test_lower_bound_is_where_success_falls_below():
    for density, inputs in itertools.product((0.5, 0.3, 0.1, 0.05), (10, 100, 1000)):
        bound = theory.lower_bound(inputs, density, 0.1)
        assert theory.hidden_layer_success(inputs, math.ceil(bound) - 1, density) < 0.9
        assert theory.hidden_layer_success(inputs, math.ceil(bound), density) >= 0.9
    assert theory.lower_bound(100, 0.3) == pytest.approx(19.22, abs=0.005)


def test_lower_bound_grows_as_one_over_log():
    densities = np.array([0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05])
    widths = [math.ceil(theory.lower_bound(100, float(p))) for p in densities]
    x = np.array([1 / rarity(float(p)) for p in densities])
    assert np.corrcoef(x, widths)[0, 1] ** 2 > 0.99


def test_upper_and_lower_bound_differ_by_a_constant():
    for density in (0.5, 0.1, 0.01):
        upper = theory.width_factors([100, 1], density, 0.1)[0]
        assert 1 < upper / theory.lower_bound(100, density, 0.1) < 3


@pytest.mark.parametrize(("inputs", "density", "copies"), [(1, 0.3, 4), (3, 0.3, 5), (6, 0.5, 3)])
def test_input_units_are_enough(inputs, density, copies):
    """Hall's theorem, counted directly: every set of inputs is seen by enough units."""
    units, random = theory.input_units(inputs, density, copies, 0.1), np.random.default_rng(2)
    sets = np.array(list(itertools.product((0, 1), repeat=inputs))[1:], bool)
    wins = 0
    for _ in range(400):
        seen = random.random((units, inputs)) < density
        wins += all((seen[:, chosen].any(1)).sum() >= chosen.sum() * copies for chosen in sets)
    assert wins / 400 >= 0.9


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: theory.width_factors([4], 0.0), "density must be in"),
        (lambda: theory.width_factors([4], 1.5), "density must be in"),
        (lambda: theory.width_factors([4], 0.5, 0.0), "delta must be in"),
        (lambda: theory.width_factors([4, 4], [0.5]), "2 layers need as many densities"),
        (lambda: theory.width_factors([], 0.5), "0 layers"),
        (lambda: theory.width_factors([-1], 0.5), "got -1"),
        (lambda: theory.success_probability([4], 0.5, [1]), "need 2 positive numbers"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
