"""A trained convolutional net inside random sparse sources: batch norm folded, padding, pooling."""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path
from types import ModuleType

import common

from startsparse import theory

TITLE = "A small CNN trained on Fashion-MNIST lies in random convolutional sources: equal predictions on all test images"
SOURCE = "Gadhikar et al. 2023, theorem 2.2 (as recalled; convolutions tap by tap are derived here)"


def runs() -> list[dict]:
    """Three targets at two densities."""
    return [{"density": p, "seed": seed} for p in (0.5, 0.3) for seed in range(3)]


def run(density: float, seed: int) -> dict:
    """Train for two epochs, embed, compare on the test images."""
    data = common.load("fashion-mnist", seed=seed)
    net = common.make_model("small-cnn", data, seed, widths=(8, 16, 32))
    common.train(net, data, epochs=2, lr=0.05, options={"momentum": 0.9}, seed=seed)
    net.eval()
    begin = time.perf_counter()
    found = theory.embed(net, density=density, seed=seed)
    seconds = time.perf_counter() - begin
    found.verify(net)
    said = found.certificate
    return {
        "seconds_embed": seconds,
        "edges": said.edges,
        "copies": list(found.source.copies.values()),
        "source_positions": said.source_positions,
        "error_bounded": said.error_bounded,
    } | _lenet().compare(net, found.model, data)


def _lenet() -> ModuleType:
    """What is compared, and how verdicts are said, is the other claim's."""
    place = Path(__file__).resolve().parents[1] / "embed_lenet" / "claim.py"
    spec = importlib.util.spec_from_file_location("embed_lenet_claim", place)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def judge(records: list[dict]) -> str:
    """A row a run."""
    rows = [
        "| density | seed | copies | positions | edges used | embed | accuracy | largest difference | predictions that differ |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for record in records:
        p, r = record["params"], record["result"]
        rows.append(
            f"| {p['density']} | {p['seed']} | {', '.join(map(str, r['copies']))} | {r['source_positions'] / 1e6:.1f} M | "
            f"{r['edges']:,} | {r['seconds_embed']:.2f} s | {100 * r['test_accuracy']:.2f} % | "
            f"{r['largest_difference']:.1e} | {r['predictions_that_differ']} of {r['test_images']:,} |"
        )
    verdict = _lenet().verdict
    equal = [r["result"]["predictions_that_differ"] == 0 for r in records]
    small = [r["result"]["largest_difference"] < 1e-10 for r in records]
    return "\n".join(
        [
            *rows,
            "",
            f"- the same predictions on all test images: {verdict(equal)}",
            f"- outputs within 1e-10 in float64: {verdict(small)}",
        ]
    )
