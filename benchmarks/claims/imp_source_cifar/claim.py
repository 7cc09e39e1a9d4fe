"""Iterative pruning inside random sources: ResNet-8 on CIFAR-10, down to 10, 3 and 1 % density.

The claim and its thresholds are those of ``imp_source``; net, examples and training are those of ``cifar_common``, where it
is told why 20 points are also asked at 0.4 of that bar, and whether nine tenths are kept of what pruning from dense is above
chance. Between one of the three densities and the next, pruning goes in the fewest steps that leave about a half each
time. A convolution's weight costs as many FLOPs as the image has places, and early layers, which a balanced source
leaves dense, have most; so here a share of FLOPs is not the same share of weights.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import cifar_common as cifar
import common
import imp_source.claim as digits

import startsparse as ss

TITLE = "On CIFAR-10 iterative magnitude pruning inside a random source ends as accurate as from dense, far above a random mask, for fewer FLOPs"
SOURCE = digits.SOURCE
STOPS = (0.1, 0.03, 0.01)
BAR, KEPT = cifar.SCALE * digits.GAINED, 0.9
LEVELS = {1.0: (1.0, 0.464, 0.215), 0.5: (0.5, 0.224), 0.3: (0.3, 0.173)}  # above the first stop
BELOW = (0.1, 0.055, 0.03, 0.0173, 0.01)


@dataclass(frozen=True)
class Through(ss.IMP):
    """Pruning that passes through given densities."""

    path: tuple[float, ...] = ()

    def counts(self, total: int, start_count: int) -> list[int]:
        return [start_count, *(round(density * total) for density in self.path[1:])]


def runs() -> list[dict]:
    """A seed each."""
    return [{"seed": seed} for seed in cifar.SEEDS]


def run(seed: int) -> dict[str, Any]:
    """Every start pruned to 1 %, and the controls at each of the three densities."""
    data, arms = cifar.load(), {}

    def train(model: Any, method: Any = None) -> dict[str, float]:
        return {"accuracy": digits.train_one(model, data, cifar.EPOCHS, seed, method)}

    with warnings.catch_warnings(action="ignore"):  # layers that end empty are part of the result
        for start, density in digits.STARTS.items():
            source = None if density == 1.0 else ss.RandomSource(density, "balanced", seed=seed)
            path = (*LEVELS[density], *BELOW)
            method = Through(path[-1], path=path)
            found = ss.lottery(cifar.net(seed), method, source=source, example_input=data.x_train[:1])
            for level, wanted in zip(found, path, strict=True):
                figures = train(level.model)
                if wanted in STOPS:
                    arms[f"{start}@{wanted:g}"] = figures | {"weights": found.counts[level.index]}
                if wanted in STOPS and start == "dense":
                    arms[f"shuffled@{wanted:g}"] = train(level.branch("shuffle", seed).model)
            whole = {"flops": found.budget.flops, "dense_samples": found.budget.dense_samples}
            arms[f"{start}@{path[-1]:g}"] |= whole | {"levels": len(path), "all_weights": sum(found.counts)}
        for density in STOPS:
            for rule in ("erk", "balanced"):
                static = ss.Static(density, rule, seed=seed)
                arms[f"random mask, {rule}@{density:g}"] = train(cifar.net(seed), static)
    return arms


def judge(records: list[dict]) -> str:
    """A table a density; against pruning from dense, against random masks, and the FLOPs."""
    cases, parts = common.one_by_one(records, key="arm"), []
    for density in STOPS:
        end = f"@{density:g}"
        at = [
            case | {"params": case["params"] | {"arm": case["params"]["arm"].removesuffix(end)}}
            for case in cases
            if case["params"]["arm"].endswith(end)
        ]
        parts += [f"## Density {density:g}", common.paired_table(at, "arm", "accuracy", "dense")]
        for start in list(digits.STARTS)[1:]:
            parts.append(digits.lost(at, start))
            kept = cifar.keeps(at, start, "dense", KEPT, by="arm", metric="accuracy")
            parts.append(f"{start} keeps {100 * KEPT:g} % of what dense is above chance: {kept}")
            for bar in (digits.GAINED, BAR, 0.0) if density == STOPS[-1] else (0.0,):
                parts += digits.gained(at, start, bar)
        found = common.difference(at, "arm", "accuracy", "shuffled", "random mask, erk")
        parts.append(f"Shuffled in each layer against a random mask (erk): {common.points(found)}")
    return "\n\n".join([*parts, "## Costs", *_costs(records)])


def _costs(records: list[dict]) -> list[str]:
    """FLOPs and weights against pruning from dense."""
    end, parts = f"@{STOPS[-1]:g}", []
    for start in list(digits.STARTS)[1:]:
        pairs = [(r["result"][start + end], r["result"]["dense" + end]) for r in records]
        flops, weights = (
            sum(a[key] / b[key] for a, b in pairs) / len(pairs) for key in ("flops", "all_weights")
        )
        fewer = all(a["dense_samples"] == 0 for a, _ in pairs) and (
            flops < digits.SHARE or start != "random 0.3"
        )
        parts.append(
            f"{start}: {flops:.3f} of the training FLOPs of pruning from dense, counted; {weights:.3f} of the sum of density * "
            f"epochs over the levels; no dense sample (random 0.3: below {digits.SHARE:g}): {'PASS' if fewer else 'FAIL'}"
        )
    return parts
