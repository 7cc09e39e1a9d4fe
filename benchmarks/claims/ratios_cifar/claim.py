"""Layer-wise densities at high sparsity: ResNet-8 on CIFAR-10.

The claim and its thresholds are those of ``ratios``; net, examples and training those of ``cifar_common``, where it is told
why the bars are also asked at 0.4 of their height. The net has eight sparse layers, so pyramidal densities have their
place here, where dead units are repaired.
"""

from __future__ import annotations

import cifar_common as cifar
import common
import ratios.claim as digits

import startsparse as ss

TITLE = "On CIFAR-10, at high sparsity the layer-wise densities of a random mask decide: ERK and balanced far above uniform"
SOURCE = digits.SOURCE
FLOWS = {"none": ("uniform", "erk", "balanced"), "keep_budget": digits.RATIOS}


def runs() -> list[dict]:
    """One run a seed; it trains every ratio in turn."""
    return [{"seed": seed} for seed in cifar.SEEDS]


def run(seed: int) -> dict:
    """Every ratio at both densities, with dead units left as they are and repaired on budget."""
    return {
        f"{flow}: {ratio}@{density:g}": cifar.fit(
            ss.Static(density=density, distribution=ratio, seed=seed, flow=flow), seed
        )
        for density in digits.BARS
        for flow, ratios in FLOWS.items()
        for ratio in ratios
    }


def judge(records: list[dict]) -> str:
    """A table a density and policy, against uniform; then the bars, and those that fit."""
    cases, parts = common.one_by_one(records), []
    for density in digits.BARS:
        for flow, ratios in FLOWS.items():
            at = [
                case | {"params": case["params"] | {"case": case["params"]["case"].removeprefix(f"{flow}: ")}}
                for case in cases
                if case["params"]["case"].startswith(flow)
                and case["params"]["case"].endswith(f"@{density:g}")
            ]
            repaired = "dead units repaired on budget" if flow == "keep_budget" else "no repair"
            parts.append(f"## Density {density:g}, {repaired}")
            parts.append(common.paired_table(at, "case", "test_accuracy", f"uniform@{density:g}"))
            parts += digits.above_uniform(at, density)
            parts += digits.above_uniform(at, density, cifar.SCALE)
            parts += digits.above_uniform(at, density, 0.0, ratios[1:])
            if flow == "keep_budget":
                names = f"pyramidal@{density:g}", f"balanced@{density:g}"
                found = common.difference(at, "case", "test_accuracy", *names)
                live = {
                    name: values.values()
                    for name, values in common.values(at, "case", "live_weights").items()
                }
                means = ", ".join(f"{name} {sum(of) / len(of):.0f}" for name, of in live.items())
                parts += [f"- pyramidal against balanced: {common.points(found)}", f"- live weights: {means}"]
    return "\n\n".join(parts)
