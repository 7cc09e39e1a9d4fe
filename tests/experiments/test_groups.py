"""Which runs are one group, what groups are called, and what may not be compared."""

from __future__ import annotations

import pytest

from startsparse.experiments.groups import groups
from startsparse.experiments.results import ResultsError, read


@pytest.fixture
def grid(finished):
    return [
        read(finished(seed, method__name=name, method__density=density))
        for name in ("static", "set")
        for density in (0.1, 0.2)
        for seed in (0, 1)
    ]


def test_told_apart_by_what_differs(grid, finished):
    dense = read(finished(0, method=None))
    found = groups([*grid, dense])
    assert list(found) == [
        "dense",
        "set density=0.1",
        "set density=0.2",
        "static density=0.1",
        "static density=0.2",
    ]
    assert sorted(found["set density=0.1"]) == [0, 1]


def test_one_setting_alone_is_its_name(finished):
    found = groups([read(finished(0, optimizer__lr=lr)) for lr in (0.1, 0.2)])
    assert list(found) == ["optimizer.lr=0.1", "optimizer.lr=0.2"]


def test_by_a_section_or_a_path(grid):
    half = [run for run in grid if run.settings["method.density"] == 0.1]
    assert list(groups(half, ["method"])) == list(groups(half, ["method.name"])) == ["set", "static"]
    with pytest.raises(ResultsError, match=r"same seed 0: they differ in method.density; add that to by"):
        groups(grid, ["method.name"])
    with pytest.raises(ResultsError, match="no run has 'methd': did you mean 'method'"):
        groups(grid, ["methd"])


def test_seeds_of_methods_follow_the_run(finished):
    assert list(groups([read(finished(seed)) for seed in (0, 1)])) == ["static"]
    fixed = [read(finished(seed, method__seed=7)) for seed in (0, 1)]
    assert list(groups(fixed)) == ["static"]


def test_one_group_differs_in_the_seed_alone(finished):
    runs = [read(finished(0, optimizer__lr=0.1)), read(finished(1, optimizer__lr=0.2))]
    with pytest.raises(ResultsError, match=r"more than the seed: optimizer.lr; add that to by"):
        groups(runs, ["method"])


def test_the_same_run_twice(finished):
    run = read(finished(0))
    with pytest.raises(ResultsError, match="they are the same run: leave one out"):
        groups([run, run])


@pytest.mark.parametrize(
    "changes",
    [{"data__validation": 0.2}, {"data": {"name": "mnist", "batch_size": 64}}],
    ids=["split", "data"],
)
def test_other_data_or_splits_are_refused(finished, changes):
    one, other = finished(0), finished(0, method__density=0.1, **changes)
    with pytest.raises(ResultsError, match="different data or splits") as error:
        groups([read(one), read(other)])
    assert str(one) in str(error.value) and str(other) in str(error.value)


def test_other_batches_of_the_same_data_are_compared(finished):
    found = groups([read(finished(0)), read(finished(0, data__batch_size=32))])
    assert list(found) == ["data.batch_size=32", "data.batch_size=64"]
