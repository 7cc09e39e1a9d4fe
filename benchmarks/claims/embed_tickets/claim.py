"""Subset sums in random sparse sources: how many numbers they need, and strong tickets end to end."""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
from scipy import stats
from torch import nn

from startsparse import theory
from startsparse.theory.subset_sums import closest

TITLE = "Subset sums in a random source need numbers in proportion to 1 / density and log(1 / eps); masks alone keep their bound"
SOURCE = "Gadhikar et al. 2023, lemma 2.4 and theorem 2.5 (as recalled); derived again and measured"
DENSITIES = (1.0, 0.8, 0.5, 0.3, 0.2)
TOLERANCES = (0.1, 0.03, 0.01)
TRIALS = 1000


def runs() -> list[dict]:
    """A run a cell, and twenty tickets at each of two densities."""
    cells = [
        {"what": "numbers", "density": p, "eps": e, "seed": 0}
        for p, e in itertools.product(DENSITIES, TOLERANCES)
    ]
    tickets = [{"what": "4-6-2", "density": p, "eps": 0.1, "seed": s} for p in (0.5, 0.3) for s in range(20)]
    return cells + tickets


def run(what: str, density: float, eps: float, seed: int) -> dict:
    """The number needed in 95 % of problems, or one ticket."""
    return {"needed": needed(density, eps)} if what == "numbers" else ticket(density, eps, seed)


def needed(density: float, eps: float) -> int:
    """By bisection over the number; the problems of a number are drawn from a seed of its own."""
    low, high = 2, math.ceil(22 / density)
    while low < high:
        middle = (low + high) // 2
        if share(middle, density, eps) >= 0.95:
            high = middle
        else:
            low = middle + 1
    return low


def share(number: int, density: float, eps: float) -> float:
    """Of problems solved: a uniform number as a subset sum of uniform numbers, each there with probability density."""
    random, solved = np.random.default_rng(number), 0
    for _ in range(TRIALS):
        values = random.uniform(-1, 1, number)
        there = values[random.random(number) < density]
        solved += closest(there[:32], float(random.uniform(-1, 1)))[1] <= eps
    return solved / TRIALS


def ticket(density: float, eps: float, seed: int) -> dict:
    """A mask for a 4-6-2 net, and how far its outputs are off on 2,000 inputs."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)).double()
    try:
        found = theory.strong_ticket(net, density=density, eps=eps, seed=seed)
    except theory.SourceTooNarrow as error:
        return {"found": 0, "why": str(error)}
    x = 2 * torch.rand(2000, 4, dtype=torch.float64) - 1
    with torch.no_grad():
        off = float((net(x) - found.model(x)).abs().max())
    found.verify(net)
    said = found.certificate
    return {"found": 1, "off": off, "bounded": said.error_bounded, "edges": said.edges, "positions": said.source_positions} | said.solved  # fmt: skip


def judge(records: list[dict]) -> str:
    """Tables and verdicts."""
    cells = {(r["params"]["density"], r["params"]["eps"]): r["result"]["needed"] for r in records if r["params"]["what"] == "numbers"}  # fmt: skip
    rows = [
        "| eps | " + " | ".join(f"density {p:g}" for p in DENSITIES) + " |",
        "| --- " * (len(DENSITIES) + 1) + "|",
    ]
    constant, affine = [], []
    for eps in TOLERANCES:
        mine = {p: cells[p, eps] for p in DENSITIES if (p, eps) in cells}
        rows.append(
            f"| {eps:g} | " + " | ".join(f"{n} (times density {n * p:.1f})" for p, n in mine.items()) + " |"
        )
        products = [n * p for p, n in mine.items()]
        if products:
            constant.append(max(abs(v / np.mean(products) - 1) for v in products))
    for p in DENSITIES:
        mine = [cells[p, eps] for eps in TOLERANCES if (p, eps) in cells]
        if len(mine) == len(TOLERANCES):
            affine.append(float(np.corrcoef(np.log(1 / np.array(TOLERANCES)), mine)[0, 1] ** 2))
    lines = [*rows, ""]
    if constant:
        word = "PASS" if max(constant) <= 0.2 else "FAIL"
        lines.append(
            f"- number times density within 20 % of its mean (largest deviation {max(constant):.0%}): {word}"
        )
    if affine:
        word = "PASS" if min(affine) > 0.95 else "FAIL"
        lines.append(f"- number linear in log(1 / eps), R2 at least {min(affine):.3f}: {word}")
    for p in sorted({r["params"]["density"] for r in records if r["params"]["what"] == "4-6-2"}):
        mine = [
            r["result"] for r in records if r["params"]["what"] == "4-6-2" and r["params"]["density"] == p
        ]
        kept = sum(r["found"] and r["off"] <= r["bounded"] for r in mine)
        low, high = stats.binomtest(kept, len(mine)).proportion_ci(0.95)
        word = "PASS" if kept >= 0.9 * len(mine) else "FAIL"
        off = sorted(r["off"] for r in mine if r["found"]) or [math.nan]
        lines.append(
            f"- tickets of 4-6-2 at density {p:g}: found and within their bound in {kept} of {len(mine)} [{low:.2f}, {high:.2f}], "
            f"median off {off[len(off) // 2]:.1e}, worst {off[-1]:.1e}: {word}"
        )
    return "\n".join(lines)
