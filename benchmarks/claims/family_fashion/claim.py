"""Every attachable method on one budget of weights, samples and epochs: LeNet-300-100 on Fashion-MNIST."""

from __future__ import annotations

import dataclasses

import common

import startsparse as ss
from startsparse.experiments import stats

TITLE = "On Fashion-MNIST at 1 % density RigL beats SET, and SET beats a static random mask"
SOURCE = (
    "Evci et al. 2020, Rigging the Lottery, section 4; Gadhikar et al. 2023, Why Random Pruning Is All We Need to Start "
    "Sparse, section 3; every registered method beside them"
)
SEEDS = range(5)
DENSITIES = (0.05, 0.01)
EPOCHS = 5
LONGEST_INTERVAL = 100  # of 2,145 steps


def runs() -> list[dict]:
    """The dense net once a seed, every method at both densities; methods registered later join."""
    dense = [{"method": "dense", "density": 1.0, "seed": seed} for seed in SEEDS]
    return dense + [
        {"method": name, "density": density, "seed": seed}
        for density in DENSITIES
        for name in ss.methods.names("attach")
        for seed in SEEDS
    ]


def run(method: str, density: float, seed: int) -> dict:
    """Five epochs of SGD with momentum, the method at its defaults but for intervals made for longer runs."""
    data = common.load("fashion-mnist")
    model = common.make_model("lenet-300-100", data, seed)
    made = None if method == "dense" else ss.methods.make(method, density=density, seed=seed)
    if getattr(made, "update_interval", 0) > LONGEST_INTERVAL:
        made = dataclasses.replace(made, update_interval=LONGEST_INTERVAL)
    return common.train(model, data, made, epochs=EPOCHS, batch=128, lr=0.1, seed=seed)


def judge(records: list[dict]) -> str:
    """A table a density, against the static mask; then the orderings."""
    parts = []
    for density in DENSITIES:
        at = [r for r in records if r["params"]["density"] == density]
        dense = [r for r in records if r["params"]["method"] == "dense"]
        complete = _complete(dense + at)
        if not any(r["params"]["method"] == "static" for r in complete):
            continue
        parts.append(
            f"## Density {density:g}\n\n{common.paired_table(complete, 'method', 'test_accuracy', 'static')}"
        )
        parts.append(_budgets(complete, density))
    one = _complete([r for r in records if r["params"]["density"] == 0.01])
    there = {r["params"]["method"] for r in one}
    for better, worse in (("rigl", "set"), ("set", "static")):
        if {better, worse} <= there:
            found = common.difference(one, "method", "test_accuracy", better, worse)
            verdict = {"better": "PASS", "worse": "FAIL", "same": "FAIL"}.get(found.judge(), "CANNOT TELL")
            parts.append(f"- {better} > {worse} at 1 %: {verdict}, {common.points(found)}")
    return "\n\n".join(parts)


def _complete(records: list[dict]) -> list[dict]:
    """Without the methods that lack seeds: a table pairs all of them."""
    have: dict[str, set] = {}
    for record in records:
        have.setdefault(record["params"]["method"], set()).add(record["params"]["seed"])
    return [r for r in records if have[r["params"]["method"]] == set(SEEDS)]


def _budgets(records: list[dict], density: float) -> str:
    """What each method spent: live weights at the end, counted training FLOPs relative to dense."""
    rows = []
    for method in dict.fromkeys(r["params"]["method"] for r in records):
        found = [r["result"] for r in records if r["params"]["method"] == method]
        live = {result["live_weights"] for result in found}
        share = sum(result["flops"] / result["dense_flops"] for result in found) / len(found)
        seconds = sum(result["train_seconds"] for result in found) / len(found)
        rows.append(
            [method, ", ".join(f"{n:,}" for n in sorted(live)), f"{100 * share:.2f} %", f"{seconds:.1f}"]
        )
    table = common.comparison.markdown(
        ["", "live weights", "training FLOPs, of dense (counted)", "seconds"], rows
    )
    steps = records[0]["result"]["steps"]
    return f"Every run {steps:,} steps on the same samples; updates at most {LONGEST_INTERVAL} steps apart. Methods with fewer than {stats.FEWEST} seeds decide nothing.\n\n{table}"
