"""Whole training steps with a real optimizer: truly sparse over dense, and masked over dense, one interleaved run.

python benchmarks/training_steps.py [--threads 2] [--seconds 20] [--json benchmarks/logs/training_steps.jsonl]
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import startsparse as ss
from startsparse.kernels import keep_pages
from startsparse.training import models

sys.path.insert(0, str(Path(__file__).parent / "kernels"))
import timing


def mlp() -> nn.Module:
    """784-1024-1024-10."""
    return nn.Sequential(
        nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10)
    )


CASES = {
    "mlp 784-1024-1024-10, batch 128, Adam": (mlp, (128, 784), "adam"),
    "resnet20, batch 128, SGD": (lambda: models.make("resnet20"), (128, 3, 32, 32), "sgd"),
    "resnet20 width 4, batch 64, SGD": (lambda: models.make("resnet20", width=4), (64, 3, 32, 32), "sgd"),
}


def contender(make, shape, optimizer, density: float, execution: str):
    """One training step of a net at a density; density 1 is the plain dense net, without anything attached."""
    torch.manual_seed(0)
    model = make()
    if optimizer == "adam":
        optimizer_ = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    else:
        optimizer_ = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    if density < 1:
        ss.attach(model, optimizer_, ss.Static(density), execution=execution)
    x, y = torch.randn(shape), torch.randint(0, 10, shape[:1])

    def step() -> None:
        F.cross_entropy(model(x), y).backward()
        optimizer_.step()
        optimizer_.zero_grad()

    return step


def main() -> None:
    """Measure every case and print the ratios to dense."""
    parser = timing.arguments(__doc__.splitlines()[0])
    parser.add_argument("--case", default="", help="only the cases whose name contains this")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_pages()
    rows = []
    for name, (make, shape, optimizer) in CASES.items():
        if options.case not in name:
            continue
        steps = {"dense": contender(make, shape, optimizer, 1.0, "masked")}
        steps["masked 0.1"] = contender(make, shape, optimizer, 0.1, "masked")
        for density in (0.1, 0.05, 0.01):
            steps[f"sparse {density:g}"] = contender(make, shape, optimizer, density, "sparse")
        medians = timing.medians(steps, options.seconds, options.cold)
        ratios = {key: medians["dense"] / seconds for key, seconds in medians.items() if key != "dense"}
        rows.append({"case": name, "dense ms": 1e3 * medians["dense"], **ratios})
    timing.report(rows, options.json)


if __name__ == "__main__":
    main()
