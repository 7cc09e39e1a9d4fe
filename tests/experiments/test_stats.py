"""Intervals and tests of paired differences: against brute force, laws, and simulated comparisons."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from startsparse.experiments import stats

VALUES = st.lists(st.integers(-1000, 1000).map(lambda v: v / 1000), min_size=4, max_size=7)


def differing(values):
    return len(set(values)) > 1


@pytest.mark.parametrize("count", [3, 4, 5])
def test_resamples_are_all_of_them(count):
    copies, weights = stats._resamples(count)
    brute = {}
    for chosen in itertools.product(range(count), repeat=count):
        row = tuple(np.bincount(chosen, minlength=count))
        brute[row] = brute.get(row, 0) + 1
    assert {
        tuple(map(int, row)): round(w * count**count) for row, w in zip(copies, weights, strict=True)
    } == brute


def test_interval_by_brute_force():
    values = np.array([0.3, 0.1, -0.2, 0.5, 0.4])
    means = sorted(np.mean([values[i] for i in chosen]) for chosen in itertools.product(range(5), repeat=5))
    tail = int(0.025 * len(means))  # 78 of 3,125 may lie beyond on either side
    wider = 2.7764451 / 1.9599640 * math.sqrt(5 / 4)
    found, mean = stats.paired(values), values.mean()
    assert found.low == pytest.approx(mean - (mean - means[tail]) * wider)
    assert found.high == pytest.approx(mean + (means[-tail - 1] - mean) * wider)
    assert found.p == pytest.approx(float(scipy_stats.ttest_1samp(values, 0).pvalue))


@given(VALUES.filter(differing), st.sampled_from([0.5, 0.9]))
def test_more_confidence_more_width(values, less):
    narrow, wide = stats.paired(values, less), stats.paired(values)
    assert wide.low <= narrow.low <= narrow.high <= wide.high


@given(VALUES.filter(differing), st.sampled_from([0.01, 1.0, 8.0]))
def test_units_and_signs(values, unit):
    found, mirrored = stats.paired(values), stats.paired([-unit * v for v in values])
    assert mirrored.mean == pytest.approx(-unit * found.mean)
    assert mirrored.low == pytest.approx(-unit * found.high, abs=1e-9)
    assert mirrored.high == pytest.approx(-unit * found.low, abs=1e-9)
    assert (mirrored.p, mirrored.p_signs) == pytest.approx((found.p, found.p_signs))


@given(st.lists(st.integers(-50, 50), min_size=2, max_size=8))
def test_sign_flip_is_the_permutation_test(values):
    peer = scipy_stats.permutation_test(
        (values,), np.mean, permutation_type="samples", n_resamples=np.inf, alternative="two-sided"
    )
    assert stats.sign_flip(values) == pytest.approx(float(peer.pvalue))


def test_sign_flip_by_hand():
    # sums of +-1 +-2 +-4 are -7, -5, ..., 7, each once; seen is 5: four of eight are as far out
    assert stats.sign_flip([-1, 2, 4]) == 0.5


def test_many_seeds_are_drawn_and_close_to_exact():
    values = np.random.default_rng(0).normal(0.4, 1, 22)
    drawn, exact = stats.sign_flip(values), stats.sign_flip(values[:20])
    assert stats.sign_flip(values) == drawn
    normal = 2 * scipy_stats.norm.sf(abs(values.sum()) / np.sqrt(np.square(values).sum()))
    assert drawn == pytest.approx(normal, abs=0.03)
    assert exact != drawn


def test_holm_by_hand():
    # sorted .01 .02 .03 .5 -> 4*.01, 3*.02, 2*.03, 1*.5, never falling
    assert stats.holm([0.5, 0.03, 0.01, 0.02]) == pytest.approx([0.5, 0.06, 0.04, 0.06])
    assert stats.holm([]) == []
    assert stats.holm([0.9, 0.8]) == [1.0, 1.0]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([0.1], "cannot tell with 1 seed"),
        ([0.1, 0.2, 0.15], "cannot tell with 3 seeds"),  # however clear
        ([0.1, 0.11, 0.12, 0.1], "cannot tell with 4 seeds"),
        ([0.1, 0.11, 0.12, 0.1, 0.13], "better"),
        ([-0.1, -0.11, -0.12, -0.1, -0.13], "worse"),
        ([0.1, 0.11, 0.12, 0.1, -0.001], "cannot tell with 5 seeds"),  # one sign of five is another
        ([0.0] * 5, "same"),
        (
            [0.1] * 5,
            "cannot tell with 5 seeds",
        ),  # nothing to learn a spread from: the signs alone, at best 1/16
        ([0.1] * 6, "better"),
    ],
)
def test_words(values, said):
    assert stats.paired(values).judge() == said
    flipped = {"better": "worse", "worse": "better"}
    assert stats.paired(values).judge(higher_is_better=False) == flipped.get(said, said)


def test_one_seed_has_no_interval():
    assert (stats.paired([0.1]).low, stats.paired([0.1]).high) == (-math.inf, math.inf)


@pytest.mark.parametrize("values", [[], [0.1, math.nan], [math.inf]])
def test_no_numbers(values):
    with pytest.raises(ValueError, match="finite numbers"):
        stats.paired(values)


def test_confidence_outside():
    with pytest.raises(ValueError, match="confidence"):
        stats.paired([1, 2], confidence=95)


@pytest.mark.parametrize(("seeds", "effect"), [(5, 0.0), (5, 0.5), (6, 0.0), (7, 0.0)])
def test_thousand_comparisons(seeds, effect):
    """Two nets of a known difference: intervals cover it in 95 +- 2 %, and no difference is seldom called one."""
    draw = np.random.default_rng(7)
    found = [stats.paired(row) for row in draw.normal(effect, 1, (1000, seeds))]
    covered = np.mean([one.low <= effect <= one.high for one in found])
    assert 0.93 <= covered <= 0.97
    wrong = np.mean([one.verdict == ("lower" if effect else "higher") for one in found])
    called = np.mean([one.verdict in ("higher", "lower") for one in found])
    assert called <= 0.05 if effect == 0 else (wrong <= 0.01 and called > 0.05)


def test_families_raise_no_more_alarms():
    """Ten comparisons at a time, none of a real difference: any alarm at all in at most 5 % of the families."""
    draw = np.random.default_rng(3)
    alarms = []
    for _ in range(200):
        found = stats.holm_all([stats.paired(row) for row in draw.normal(0, 1, (10, 5))])
        alarms.append(any(one.verdict in ("higher", "lower") for one in found))
    assert np.mean(alarms) <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 200)
