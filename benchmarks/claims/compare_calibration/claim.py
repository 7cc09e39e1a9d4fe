"""What ``startsparse compare`` says about simulated runs whose true difference is known."""

from __future__ import annotations

import common
import numpy as np

from startsparse.experiments import comparison

TITLE = (
    "Comparisons of 5 to 10 paired seeds raise a false alarm in at most 5 % of cases and cover in 95 +- 2 %"
)
SOURCE = "startsparse.experiments; Hesterberg, What Teachers Should Know About the Bootstrap, 2015"
SEEDS = range(5)
NUM_SEEDS = (5, 6, 8, 10)
COMPARISONS = 1000
EFFECTS = (0.0, 0.005)
LAWS = {  # what differs between two trainings with the same seed; each of mean 0 and spread 1
    "normal": lambda draw, size: draw.normal(size=size),
    "flat": lambda draw, size: draw.uniform(-(3**0.5), 3**0.5, size=size),
    "heavy tails": lambda draw, size: draw.standard_t(5, size=size) / (5 / 3) ** 0.5,
    "mild skew": lambda draw, size: (draw.gamma(9, size=size) - 9) / 3,
    "strong skew": lambda draw, size: draw.exponential(size=size) - 1,
}


def runs() -> list[dict]:
    """A thousand comparisons for each law, number of seeds and effect, five times over."""
    return [{"seed": seed} for seed in SEEDS]


def run(seed: int) -> dict:
    """Shares of the thousand."""
    found = {}
    for law, number in ((law, number) for law in LAWS for number in NUM_SEEDS):
        for effect in EFFECTS:
            draw = np.random.default_rng([seed, number, int(effect * 1000), list(LAWS).index(law)])
            rows = [
                comparison.compare(_accuracies(draw, LAWS[law], number, effect), "baseline")[1].difference
                for _ in range(COMPARISONS)
            ]
            found[f"{law}, {number} seeds, effect {100 * effect:g} pp"] = {
                "covered": float(np.mean([row.low <= effect <= row.high for row in rows])),
                "called": float(np.mean([row.verdict in ("higher", "lower") for row in rows])),
                "wrong": float(np.mean([row.verdict == "lower" for row in rows])),
            }
    found["family of 10, normal, 5 seeds"] = {"called": _families(np.random.default_rng([seed, 77]))}
    return found


def _accuracies(draw, law, number: int, effect: float) -> dict[str, dict[int, float]]:
    """Test accuracies of two nets, on 10,000 images: what the seed does to both, and what it does to each."""
    shared = 0.88 + 0.004 * draw.normal(size=number)
    apart = 0.003 * law(draw, number)
    other = shared + effect + apart
    return {
        "baseline": dict(enumerate(np.round(shared, 4).tolist())),
        "other": dict(enumerate(np.round(other, 4).tolist())),
    }


def _families(draw) -> float:
    """Share of families of ten methods, none of which differs from the baseline, with any alarm."""
    alarms = 0
    for _ in range(COMPARISONS):
        methods = 0.88 + 0.003 * draw.normal(size=(11, 5))
        values = {f"m{i}": dict(enumerate(row.tolist())) for i, row in enumerate(methods)}
        rows = comparison.compare(values, "m0")
        alarms += any(row.difference and row.difference.verdict in ("higher", "lower") for row in rows)
    return alarms / COMPARISONS


def judge(records: list[dict]) -> str:
    """Every law by itself; of the thousands of a law the worst one counts."""
    cases = common.one_by_one(records)
    families = [r["result"]["called"] for r in cases if r["params"]["case"].startswith("family")]
    lines, rows = [], []
    for law in LAWS:
        of = [record for record in cases if record["params"]["case"].startswith(f"{law},")]
        covered = [record["result"]["covered"] for record in of]
        alarms = [r["result"]["called"] for r in of if r["params"]["case"].endswith("effect 0 pp")]
        cover = "PASS" if min(covered) >= 0.93 and max(covered) <= 0.97 else "FAIL"
        quiet = "PASS" if max(alarms) <= 0.05 else "FAIL"
        lines.append(f"- {law}: every thousand of intervals covers in 95 +- 2 %: {cover}, {_range(covered)}")
        lines.append(f"- {law}: false alarms in at most 5 % of every thousand: {quiet}, {_range(alarms)}")
        for case in dict.fromkeys(record["params"]["case"] for record in of):
            found = [record["result"] for record in of if record["params"]["case"] == case]
            rows.append(
                [case, *(_range([one[key] for one in found]) for key in ("covered", "called", "wrong"))]
            )
    verdict = "PASS" if max(families) <= 0.05 else "FAIL"
    lines.append(
        f"- families of 10, normal, 5 seeds: any false alarm in at most 5 %: {verdict}, {_range(families)}"
    )
    note = (
        "The laws are of the difference between two nets trained with one seed. Of a thousand the share itself is "
        "uncertain by 1.4 points, so the worst of many lies outside more easily than one."
    )
    table = common.comparison.markdown(["", "covered", "called better or worse", "called worse"], rows)
    return "\n".join(lines) + f"\n\n{note}\n\n{table}"


def _range(shares: list[float]) -> str:
    return f"{100 * min(shares):.1f} to {100 * max(shares):.1f} %"
