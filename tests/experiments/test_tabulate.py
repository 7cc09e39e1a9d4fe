"""Tables of comparisons: pairing, budgets, equal costs, and every form of the table."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest

from startsparse.experiments import budgets
from startsparse.experiments.results import ResultsError, read
from startsparse.experiments.tabulate import tabulate

SEEDS = range(5)


@pytest.fixture
def simulated(finished):
    """Static, a method that is 2 pp better and one that is as good, in five seeds of known noise."""
    draw = np.random.default_rng(1)
    shared = 0.9 + 0.02 * draw.normal(size=5)
    runs = []
    for name, effect in (("static", 0.0), ("set", 0.02), ("magnitude", 0.0)):
        noise = 0.002 * draw.normal(size=5)
        runs += [
            read(finished(seed, accuracy=float(shared[seed] + effect + noise[seed]), method__name=name))
            for seed in SEEDS
        ]
    return runs


def test_pairs_see_through_what_seeds_share(simulated):
    found = tabulate(simulated, baseline="static")
    verdicts = {row.label: row.difference and row.difference.judge() for row in found.rows}
    assert verdicts == {"magnitude": "cannot tell with 5 seeds", "set": "better", "static": None}
    row = next(row for row in found.rows if row.label == "set")
    values = [
        (run.seed, run.result["test_accuracy"]) for run in simulated if run.settings["method.name"] == "set"
    ]
    base = {
        run.seed: run.result["test_accuracy"] for run in simulated if run.settings["method.name"] == "static"
    }
    assert row.difference.mean == pytest.approx(np.mean([value - base[seed] for seed, value in values]))
    assert row.difference.adjusted == 2
    assert found.notes == ["5 paired seeds: 0, 1, 2, 3, 4"]


def test_every_form(simulated):
    found = tabulate(simulated, baseline="stat")
    text, markdown = found.text(), found.markdown()
    assert "better" in text and "baseline" in text and "samples" in text and "5 paired seeds" in text
    lines = markdown.splitlines()
    assert lines[0].count("|") == lines[1].count("|") == lines[2].count("|") == 11
    rows = list(csv.DictReader(io.StringIO(found.csv())))
    assert [row["group"] for row in rows] == ["magnitude", "set", "static"]
    assert float(rows[1]["difference"]) == pytest.approx(0.02, abs=0.003)
    assert float(rows[0]["samples"]) == 40 * 64


def test_losses_are_better_when_lower(finished):
    runs = [
        read(finished(seed, method__density=density, validations=(0.5, 0.5 + 0.01 * seed + density)))
        for density in (0.1, 0.2)
        for seed in SEEDS
    ]
    (row,) = [row for row in tabulate(runs, "validation_loss", match="samples").rows if row.difference]
    assert row.difference.mean < 0  # the losses of the second, 1 - accuracy, are lower
    said = tabulate(runs, "validation_loss", match="samples").table()[1]
    assert (
        said[1][-4] == "cannot tell with 5 seeds"
    )  # equal differences on every seed: signs alone, at best 1/16


def test_budgets_count_dense_gradients_too(trained):
    rigl, dense = trained
    weights = 64 * 8 + 8 * 10
    assert budgets.flops_per_sample(dense) == 3 * 2 * weights
    live = round(0.2 * weights)
    updates = 1  # of six steps: every second one, not the first, before three quarters of the run
    assert budgets.flops_per_sample(rigl) == pytest.approx(3 * 2 * live + updates / 6 * 2 * (weights - live))
    cost = budgets.budget({0: rigl})
    assert cost.samples == 6 * 64 and cost.flops == pytest.approx(budgets.flops_per_sample(rigl) * 6 * 64)


def test_at_equal_samples(finished):
    short = [read(finished(s, validations=(0.4, 0.6), steps=20, train__epochs=1)) for s in SEEDS]
    long = [read(finished(s, validations=(0.3, 0.55, 0.7, 0.9), steps=40)) for s in SEEDS]
    as_ended = tabulate([*short, *long])
    assert any("not seen the same number of samples" in note for note in as_ended.notes)
    found = tabulate([*short, *long], "validation_accuracy", match="samples")
    assert {row.label: row.mean for row in found.rows} == {"train.epochs=1": 0.6, "train.epochs=2": 0.55}


def test_at_equal_flops(finished):
    thin = [read(finished(s, validations=(0.4, 0.6), method__density=0.1)) for s in SEEDS]
    thick = [read(finished(s, validations=(0.3, 0.5, 0.7, 0.9), method__density=0.2)) for s in SEEDS]
    found = tabulate([*thin, *thick], "validation_accuracy", match="flops")
    assert [row.mean for row in found.rows] == [0.6, 0.5]  # half of the steps of twice the weights


def test_at_equal_seconds(finished):
    quick = [
        read(finished(s, validations=(0.4, 0.6), seconds=1.0 + 0.01 * s, method__density=0.1)) for s in SEEDS
    ]
    slow = [
        read(finished(s, validations=(0.3, 0.5, 0.7, 0.9), seconds=2.0, method__density=0.2)) for s in SEEDS
    ]
    found = tabulate([*quick, *slow], "validation_accuracy", match="seconds")
    assert [row.mean for row in found.rows] == [0.6, 0.5]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"metric": "test_acuracy"}, "has no figure 'test_acuracy': did you mean 'test_accuracy'"),
        ({"baseline": "snip"}, "no single group is called 'snip'"),
        ({"baseline": "s"}, "it may be set or static"),
        ({"match": "flops"}, "known only at the end"),
        ({"match": "watts", "metric": "validation_accuracy"}, "unknown cost 'watts'"),
    ],
)
def test_bad_questions(simulated, options, says):
    with pytest.raises(ResultsError, match=says):
        tabulate(simulated, **options)


def test_missing_seeds_are_named(simulated):
    with pytest.raises(ResultsError, match="magnitude lacks seed 3, 4; static lacks seed 0"):
        tabulate(
            [
                run
                for run in simulated
                if (run.settings["method.name"], run.seed)
                not in {("magnitude", 3), ("magnitude", 4), ("static", 0)}
            ]
        )


def test_a_single_group(finished):
    with pytest.raises(ResultsError, match="only one group of runs, static"):
        tabulate([read(finished(seed)) for seed in SEEDS])


def test_never_validated_in_time(finished):
    early = [read(finished(s, validations=(0.6,), steps=10, train__epochs=1)) for s in SEEDS]
    late = [read(finished(s, validations=(0.9,), steps=40)) for s in SEEDS]
    with pytest.raises(ResultsError, match="was not validated before it had cost 640 samples"):
        tabulate([*early, *late], "validation_accuracy", match="samples")


def test_what_else_differs_is_said(finished):
    runs = [
        read(finished(seed, method__name=name, optimizer__lr=lr))
        for name, lr in (("static", 0.1), ("set", 0.2))
        for seed in SEEDS
    ]
    assert any("differ besides in optimizer.lr" in note for note in tabulate(runs, by=["method"]).notes)
