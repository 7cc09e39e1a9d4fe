"""A trained LeNet-300-100 inside random sparse sources: the same predictions, and what finding it costs."""

from __future__ import annotations

import copy
import resource
import time

import common
import torch

from startsparse import theory

TITLE = "A LeNet-300-100 trained on MNIST lies in a random source of density 0.3, found in a minute: equal predictions on all test images"
SOURCE = "Gadhikar et al. 2023, Why Random Pruning Is All We Need to Start Sparse, theorem 2.2 (as recalled), made constructive"
BAR_SECONDS = 60.0


def runs() -> list[dict]:
    """Five targets at density 0.3; then one target over densities, and targets of other sizes."""
    main = [{"widths": [300, 100], "density": 0.3, "seed": seed} for seed in range(5)]
    densities = [{"widths": [300, 100], "density": p, "seed": 0} for p in (0.5, 0.2, 0.1, 0.05)]
    sizes = [{"widths": widths, "density": 0.3, "seed": 0} for widths in ([75, 25], [150, 50], [600, 200])]
    return main + densities + sizes


def run(widths: list[int], density: float, seed: int) -> dict:
    """Train for three epochs, embed, compare on the test images."""
    data = common.load("mnist", seed=seed)
    net = common.make_model("mlp", data, seed, widths=tuple(widths))
    common.train(net, data, epochs=3, lr=0.05, options={"momentum": 0.9}, seed=seed)
    net.eval()
    ends = (float(data.x_train.min()), float(data.x_train.max()))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.perf_counter()
    found = theory.embed(net, density=density, seed=seed, box=ends)
    seconds = time.perf_counter() - begin
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.perf_counter()
    found.verify(net)
    verified = time.perf_counter() - begin
    said = found.certificate
    return {
        "seconds_embed": seconds,
        "seconds_verify": verified,
        "gib_peak_before": before / 2**20,
        "gib_peak": memory / 2**20,
        "edges": said.edges,
        "copies": list(found.source.copies.values()),
        "source_positions": said.source_positions,
        "error_measured": said.error_measured,
        "error_bounded": said.error_bounded,
        "chance": said.chance,
    } | compare(net, found.model, data)


@torch.no_grad()
def compare(net: torch.nn.Module, model: torch.nn.Module, data: common.Data) -> dict:
    """Predictions on all test images: of the net as it is, in float64, and of the sub-network."""
    exact, differ, differ_exact, largest, right = copy.deepcopy(net).double(), 0, 0, 0.0, 0
    for x, y in zip(data.x_test.split(250), data.y_test.split(250), strict=True):
        copied, wide = model(x), exact(x.double())
        largest = max(largest, float((copied - wide).abs().max()))
        differ += int((copied.argmax(1) != net(x).argmax(1)).sum())
        differ_exact += int((copied.argmax(1) != wide.argmax(1)).sum())
        right += int((copied.argmax(1) == y).sum())
    number = len(data.y_test)
    return {
        "test_images": number,
        "test_accuracy": right / number,
        "predictions_that_differ": differ,
        "predictions_that_differ_in_float64": differ_exact,
        "largest_difference": largest,
    }


def judge(records: list[dict]) -> str:
    """A row a run; verdicts on the five at density 0.3, and formulas beside what was seen."""
    rows = [
        (
            "| target | density | copies | positions | edges used | embed | verify | peak memory | largest difference | "
            "predictions that differ |"
        ),
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for record in records:
        p, r = record["params"], record["result"]
        rows.append(
            f"| 784-{p['widths'][0]}-{p['widths'][1]}-10, seed {p['seed']} | {p['density']} | "
            f"{', '.join(map(str, r['copies']))} | {r['source_positions'] / 1e9:.2f} G | {r['edges'] / 1e6:.2f} M | "
            f"{r['seconds_embed']:.1f} s | {r['seconds_verify']:.1f} s | {r['gib_peak']:.2f} GiB | "
            f"{r['largest_difference']:.1e} | {r['predictions_that_differ']} of {r['test_images']:,} |"
        )
    main = [r for r in records if r["params"]["widths"] == [300, 100] and r["params"]["density"] == 0.3]
    equal = [r["result"]["predictions_that_differ"] == 0 for r in main]
    fast = [r["result"]["seconds_embed"] <= BAR_SECONDS for r in main]
    small = [r["result"]["largest_difference"] < 1e-10 for r in records]
    formula = [
        f"- density {p:g}: width factors of the theorem {theory.width_factors([235200, 30000, 1000], p)}"
        for p in (0.5, 0.3, 0.1, 0.05, 0.01)
    ]
    return "\n".join(
        [
            *rows,
            "",
            f"- the same predictions on all test images at density 0.3: {verdict(equal)}",
            f"- embedded within {BAR_SECONDS:.0f} s on one core: {verdict(fast)}",
            f"- outputs within 1e-10 in float64, every run: {verdict(small)}",
            *formula,
            "- peak memory is of the whole process, data and training included",
        ]
    )


def verdict(held: list[bool]) -> str:
    """PASS if it held in every run."""
    word = "CANNOT TELL" if not held else "PASS" if all(held) else "FAIL"
    return f"{word} ({sum(held)} of {len(held)} runs)"
