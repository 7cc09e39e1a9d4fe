"""What runs have cost, and where they stood when they had cost the same."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch

import startsparse as ss
from startsparse.experiments.results import ResultsError, Run
from startsparse.training import build, reading, recipe

COSTS = ("samples", "flops", "seconds")


@dataclass(frozen=True)
class Budget:
    """What a run of a group costs.

    Attributes:
        samples: training examples seen.
        flops: of the layers that may be sparse over the whole training, dense-gradient steps included; counted.
        seconds: of the training steps; measured.
    """

    samples: float
    flops: float
    seconds: float


def budget(runs: Mapping[int, Run]) -> Budget:
    """The mean over the runs of a group; FLOPs are the same for all of them."""
    of = list(runs.values())
    samples = fmean(run.samples for run in of)
    return Budget(samples, flops_per_sample(of[0]) * samples, fmean(run.seconds for run in of))


def flops_per_sample(run: Run) -> float:
    """Counted FLOPs of a training step by sample, averaged over the run: the plan of its recipe says them.

    Raises:
        ResultsError: its recipe cannot be read by this version.
    """
    if "costs" in run.result:
        return run.result["costs"]["flops"] / run.samples
    plan, _ = plan_of(run)
    assert plan.flops is not None
    return plan.flops.training


def plan_of(run: Run) -> tuple[ss.planning.Plan, Any]:
    """The plan of a run of one stage, and its method; a dense run's is that of all weights, its method None.

    Raises:
        ResultsError: its recipe cannot be read by this version.
    """
    try:
        chosen = recipe.parse(reading.read_yaml(run.folder / "recipe.yaml"))
    except recipe.RecipeError as error:
        raise ResultsError(f"{run.folder / 'recipe.yaml'}: {error}") from error
    method, source = build.method_of(chosen)
    with (
        warnings.catch_warnings(action="ignore"),
        torch.random.fork_rng(devices=[]),
    ):  # said when it was trained
        plan = ss.plan(
            build.model_of(chosen),
            ss.Static(density=1.0) if method is None else method,
            source=source,
            layers=chosen.layers,
            example_input=build.example_of(chosen.data.entry(), 1),
            total_steps=run.result["steps"],
        )
    return plan, method


def at_equal_cost(
    found: Mapping[str, Mapping[int, Run]], budgets: Mapping[str, Budget], cost: str, metric: str
) -> tuple[dict[str, dict[int, float]], float]:
    """Each run's figure on the held-out part when it had cost what the cheapest group costs in all, and that cost.

    FLOPs are spread evenly over the steps.

    Raises:
        ResultsError: a figure that is known at the end alone, or a run that had not been validated by then.
    """
    name = metric.removeprefix("validation_")
    if not metric.startswith("validation_"):
        raise ResultsError(
            f"metric: {metric} is known only at the end (the test part is looked at once); at equal {cost}, runs are "
            f"compared by validation_accuracy or validation_loss"
        )
    if several := [run.folder for group in found.values() for run in group.values() if "costs" in run.result]:
        raise ResultsError(
            f"match: {several[0]} has several stages and is not validated on the way: compare it on equal budgets"
        )
    limit = min(getattr(budgets[label], cost) for label in found)
    values: dict[str, dict[int, float]] = {}
    for label, group in found.items():
        for seed, run in group.items():
            row = _last_within(run, cost, limit * (1 + 1e-9), budgets[label])
            if row is None or row.get(name) is None:
                raise ResultsError(f"{run.folder} was not validated before it had cost {limit:.4g} {cost}")
            values.setdefault(label, {})[seed] = row[name]
    return values, limit


def _last_within(run: Run, cost: str, limit: float, whole: Budget) -> dict | None:
    steps, laps = run.result["steps"], run.laps()
    last = None
    for row in run.validations():
        if cost == "seconds":
            spent = sum(seconds for step, seconds in laps.items() if step <= row["step"])
        else:
            spent = getattr(whole, cost) * row["step"] / steps
        # a run's own time may lie above its group's mean: the cheapest group is compared as it ended
        if spent <= limit or (row["step"] == steps and getattr(whole, cost) <= limit):
            last = row
    return last
