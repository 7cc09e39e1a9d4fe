"""How wide a random source must be: the lower bound against draws, and success of embeddings against the closed form."""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
from scipy import stats
from torch import nn

from startsparse import theory
from startsparse.theory.assignment import assign, connect

TITLE = "Random sources hold their targets at the theoretical width, fail strictly below it, and adaptive assignment needs less"
SOURCE = "Gadhikar et al. 2023, theorems 2.2 and 2.3 (as recalled), derived again and drawn"
TARGETS = ("mlp", "sparse mlp", "conv")
DENSITIES = (0.5, 0.3, 0.1)
SHRINKS = (0.3, 0.6, 0.8, 1.0)
ASSIGNMENTS = ("strict", "block", "adaptive")
TRIALS = 40
DRAWS = 5000


def runs() -> list[dict]:
    """Five seeds of forty sources for each target and density; one of all cells of the lower bound."""
    grid = itertools.product(TARGETS, DENSITIES, range(5))
    return [{"what": "lower bound", "density": 0.0, "seed": 0}] + [
        {"what": target, "density": density, "seed": seed} for target, density, seed in grid
    ]


def run(what: str, density: float, seed: int) -> dict:
    """Counts of success."""
    return lower_bound(seed) if what == "lower bound" else successes(what, density, seed)


def lower_bound(seed: int) -> dict:
    """24 cells: how often every input keeps an edge, drawn; and the width at which it first does in 90 %."""
    random, cells = np.random.default_rng(seed), []
    for density, inputs, width in itertools.product((0.5, 0.3, 0.2, 0.1), (10, 100), (10, 20, 40)):
        seen = np.mean([(random.random((inputs, width)) < density).any(1).all() for _ in range(DRAWS)])
        exact = theory.hidden_layer_success(inputs, width, density)
        error = math.sqrt(max(exact * (1 - exact), 1 / DRAWS) / DRAWS)
        cells.append({"density": density, "inputs": inputs, "width": width, "seen": float(seen), "exact": exact, "z": (seen - exact) / error})  # fmt: skip
    below = [
        theory.hidden_layer_success(d, math.ceil(theory.lower_bound(d, p)) - 1, p)
        for p, d in itertools.product((0.5, 0.3, 0.1, 0.05), (10, 100, 1000))
    ]
    densities = np.array([0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05])
    widths = [math.ceil(theory.lower_bound(100, float(p))) for p in densities]
    fit = float(np.corrcoef(-1 / np.log1p(-densities), widths)[0, 1] ** 2)
    return {"cells": cells, "success_below": below, "r_squared": fit}


def make(what: str) -> nn.Module:
    """A target of fixed weights."""
    torch.manual_seed(0)
    if what == "conv":
        return nn.Sequential(
            nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 3)
        )
    net = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    if what == "sparse mlp":
        for p in net.parameters():
            if p.dim() == 2:
                p.data.mul_(torch.rand_like(p) < 0.3)
    return net


def successes(what: str, density: float, seed: int) -> dict:
    """How many of the sources hold the target, by width and assignment; the largest difference of outputs."""
    net, found, worst = make(what), {}, 0.0
    traced = theory.trace(net)
    for shrink in SHRINKS:
        for trial in range(TRIALS):
            number = seed * TRIALS + trial
            source = theory.random_source(traced, density, 0.1, number, signs=1, shrink=shrink)
            for how in ASSIGNMENTS:
                key = f"{how}@{shrink:g}"
                found[key] = found.get(key, 0) + _held(traced, source, how)
    for trial in range(5):
        try:
            worst = max(
                worst, theory.embed(net, density=density, seed=seed * 5 + trial).certificate.error_measured
            )
        except theory.SourceTooNarrow:
            continue
    source = theory.random_source(traced, density, 0.1, 0, signs=1)
    links = traced.links(dict.fromkeys(source.layers, density))
    exact = math.exp(theory.widths.log_success(links, lambda group: source.copies[group]))
    return {"found": found, "trials": TRIALS, "exact": exact, "error": worst}


def _held(traced: theory.graph.Target, source: theory.Source, how: str) -> int:
    try:
        connect(traced, source, assign(traced, source, 1, how))
    except theory.SourceTooNarrow:
        return 0
    return 1


def judge(records: list[dict]) -> str:
    """Shares of success with intervals (Clopper-Pearson, 95 %), and verdicts."""
    parts = [_judge_bound(r["result"]) for r in records if r["params"]["what"] == "lower bound"]
    rows = [
        "| target | density | closed form | "
        + " | ".join(f"{h} {s:g} q" for h in ASSIGNMENTS for s in SHRINKS)
        + " |",
        "| --- " * (3 + len(ASSIGNMENTS) * len(SHRINKS)) + "|",
    ]
    checks: dict[str, list[str]] = {"strict": [], "block": [], "narrow": [], "adaptive": [], "error": []}
    for target, density in itertools.product(TARGETS, DENSITIES):
        mine = [
            r["result"] for r in records if (r["params"]["what"], r["params"]["density"]) == (target, density)
        ]
        if not mine:
            continue
        trials = sum(r["trials"] for r in mine)
        count = {key: sum(r["found"][key] for r in mine) for key in mine[0]["found"]}
        shown = " | ".join(_share(count[f"{h}@{s:g}"], trials) for h in ASSIGNMENTS for s in SHRINKS)
        rows.append(f"| {target} | {density} | {mine[0]['exact']:.3f} | {shown} |")
        for how in ("strict", "block"):
            checks[how].append(_above(count[f"{how}@1"], trials, 0.9))
        checks["narrow"].append(_above(trials - count["strict@0.6"], trials, 0.5))
        checks["adaptive"].append(_above(count["adaptive@0.6"], trials, 0.9))
        checks["error"].append("PASS" if max(r["error"] for r in mine) < 1e-10 else "FAIL")
    said = {
        "strict": "every unit served, at the theoretical width, in at least 90 %",
        "block": "target held by fixed blocks, at the theoretical width, in at least 90 %",
        "narrow": "every unit served at 0.6 of the width in less than half",
        "adaptive": "target held by adaptive assignment, at 0.6 of the width, in at least 90 %",
        "error": "outputs within 1e-10 in float64",
    }
    verdicts = [
        f"- {said[key]}: {', '.join(f'{words.count(w)} {w}' for w in ('PASS', 'CANNOT TELL', 'FAIL') if w in words)}"
        for key, words in checks.items()
        if words
    ]
    return "\n".join([*parts, *rows, "", *verdicts])


def _judge_bound(result: dict) -> str:
    inside = sum(abs(cell["z"]) < 3 for cell in result["cells"])
    number = len(result["cells"])
    return "\n".join(
        [
            (
                f"- one hidden layer: {inside} of {number} cells within 3 standard errors of the closed form ({DRAWS} draws each): "
                f"{'PASS' if inside >= 0.95 * number else 'FAIL'}"
            ),
            (
                f"- one unit below the lower bound success is below 90 % ({max(result['success_below']):.3f} at most): "
                f"{'PASS' if max(result['success_below']) < 0.9 else 'FAIL'}"
            ),
            (
                f"- the bound is linear in 1 / log(1 / (1 - p)), R2 = {result['r_squared']:.4f}: "
                f"{'PASS' if result['r_squared'] > 0.99 else 'FAIL'}"
            ),
            "",
        ]
    )


def _share(count: int, trials: int) -> str:
    low, high = stats.binomtest(count, trials).proportion_ci(0.95)
    return f"{count / trials:.2f} [{low:.2f}, {high:.2f}]"


def _above(count: int, trials: int, bar: float) -> str:
    low, high = stats.binomtest(count, trials).proportion_ci(0.95)
    return "PASS" if low >= bar else "FAIL" if high < bar else "CANNOT TELL"
