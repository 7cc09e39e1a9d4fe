"""How much shorter is a search that begins at the magnitude mask?

Each length has a cosine schedule of its own. The target is what a search from a random mask reaches in the longest.
"""

from __future__ import annotations

import math
import random
import statistics
from typing import Any

import common
import jackpot_common as jackpots

import startsparse as ss

TITLE = "A search that begins at the largest weights needs a third of the epochs of one from a random mask"
SOURCE = "Zhang et al., Lottery Jackpots Exist in Pre-trained Models, TPAMI 2023, abstract (at least 3x cost reduction)"

SEEDS = (0, 1, 2, 3, 4)
EPOCHS = (1, 2, 3, 5, 9)
DATA, DENSITY, WIDTH = "fashion-mnist", 0.1, jackpots.NARROW
INITS = {"magnitude": (0, *EPOCHS), "random": EPOCHS, "proportional": (5,)}


def runs() -> list[dict[str, Any]]:
    """Every start and length, seeds outermost."""
    return [
        {"init": init, "epochs": epochs, "seed": seed}
        for seed in SEEDS
        for init in INITS
        for epochs in INITS[init]
    ]


def run(init: str, epochs: int, seed: int) -> dict[str, Any]:
    """One search."""
    model = jackpots.pretrained(DATA, WIDTH, seed)
    if epochs == 0:
        return jackpots.one_shot(model, ss.JackpotReleased(DENSITY, init=init), DATA)
    rank = "absolute" if init == "proportional" else "raw"  # as HYDRA ranks
    method = ss.JackpotReleased(DENSITY, init=init, rank=rank, seed=seed)
    return jackpots.finished(jackpots.search(model, method, DATA, epochs=epochs, seed=seed), DATA)


def judge(records: list[dict[str, Any]]) -> str:
    """Accuracy over epochs, then the ratio of the costs."""
    found: dict[tuple[str, int], dict[int, float]] = {}
    for record in records:
        p = record["params"]
        found.setdefault((p["init"], p["epochs"]), {})[p["seed"]] = record["result"]["accuracy"]
    rows = []
    for init in INITS:
        groups = [found.get((init, epochs), {}) for epochs in (0, *EPOCHS)]
        rows.append([init, *(f"{100 * statistics.mean(g.values()):.2f} %" if g else "" for g in groups)])
    head = ["first scores", "no search", *(f"{epochs} epochs" for epochs in EPOCHS)]
    parts = [
        "## Test accuracy, batch norm measured anew",
        common.comparison.markdown(head, rows),
        "## Thresholds",
    ]
    longest = found.get(("random", EPOCHS[-1]), {})
    curves = {s: [found.get(("magnitude", e), {}).get(s) for e in EPOCHS] for s in longest}
    whole = {s: curve for s, curve in curves.items() if None not in curve}
    if len(whole) < 5:
        return "\n\n".join([*parts, "- CANNOT TELL, runs are missing"])
    target = statistics.mean(longest.values())
    early = [s for s, curve in whole.items() if max(curve[:3]) >= target - 0.002]
    word = "PASS" if len(early) >= 4 else "FAIL"
    says = f"from magnitude, 3 epochs reach what {EPOCHS[-1]} from a random mask reach, less 0.2 points"
    lines = [
        jackpots.verdict(says, word, f"in {len(early)} of {len(whole)} seeds (target {100 * target:.2f} %)")
    ]
    ratios = [EPOCHS[-1] / _needed(curve, longest[s]) for s, curve in whole.items()]
    low, high = _bootstrap(ratios)
    word = "PASS" if low > 3 else "FAIL" if low <= 1 <= high or high < 3 else "CANNOT TELL"
    text = (
        f"ratio {statistics.geometric_mean(ratios):.2f} (95 % bootstrap interval {low:.2f} to {high:.2f}; at most "
        f"{EPOCHS[-1]:g}, where one epoch is enough, and counted as 1 where no length is)"
    )
    lines.append(jackpots.verdict("a search from magnitude is more than 3 times cheaper", word, text))
    word = "PASS" if low > 1.5 else "FAIL" if high < 1.5 or low <= 1 <= high else "CANNOT TELL"
    lines.append(jackpots.verdict("it is more than 1.5 times cheaper", word, text))
    gaps = common.difference(
        [r for r in records if r["params"]["epochs"] == 5], "init", "accuracy", "magnitude", "proportional"
    )
    lines.append(f"- Two levels against HYDRA's proportional scores, 5 epochs: {common.points(gaps)}")
    return "\n\n".join([*parts, "\n".join(lines)])


def _needed(curve: list[float], target: float) -> float:
    """Epochs at which a curve first reaches a target, between lengths on a logarithmic scale."""
    if curve[0] >= target:
        return EPOCHS[0]
    for (e0, a0), (e1, a1) in zip(
        zip(EPOCHS, curve, strict=True), list(zip(EPOCHS, curve, strict=True))[1:], strict=False
    ):
        if a1 >= target:
            share = (target - a0) / (a1 - a0)
            return math.exp(math.log(e0) + share * (math.log(e1) - math.log(e0)))
    return EPOCHS[-1]


def _bootstrap(ratios: list[float], draws: int = 10_000) -> tuple[float, float]:
    """Interval of the geometric mean over seeds."""
    generator = random.Random(0)
    means = sorted(statistics.geometric_mean(generator.choices(ratios, k=len(ratios))) for _ in range(draws))
    return means[round(0.025 * draws)], means[round(0.975 * draws)]
