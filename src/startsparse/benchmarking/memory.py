"""Peak memory of training, above the import of torch: three Linear(8192) with Adam at 95 %, and one that cannot be dense.

Each case runs in a process of its own. ``huge`` has over 2 billion dense weights at 99.5 %: it is made on the meta
device, trained 20 steps, saved and loaded into a second one.

    python benchmarks/memory.py [--json benchmarks/logs/memory.jsonl]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WIDTH, HUGE = 8192, 33000


def peak() -> float:
    """Peak resident memory of this process, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def train(case: str) -> dict:
    """One case, in this process."""
    import torch
    from torch import nn

    import startsparse as ss

    torch.manual_seed(0)
    before = peak()
    width = HUGE if case == "huge" else WIDTH
    layers = 2 if case == "huge" else 3

    def make(device: str) -> nn.Module:
        with torch.device(device):
            return nn.Sequential(*[m for _ in range(layers) for m in (nn.Linear(width, width), nn.ReLU())])

    def attached(model: nn.Module):
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        method = ss.SET(0.005, update_interval=10) if case == "huge" else ss.Static(0.05)
        if case == "sparse, RigL":
            method = ss.RigL(0.05, update_interval=5)
        execution = "masked" if case == "masked" else "sparse"
        return optimizer, ss.attach(model, optimizer, method, total_steps=20, execution=execution)

    start = time.perf_counter()
    model = make("cpu" if case in ("dense", "masked") else "meta")
    if case == "dense":
        optimizer, sparse = torch.optim.Adam(model.parameters(), lr=1e-3), None
    else:
        optimizer, sparse = attached(model)
    x = torch.randn(128, width)
    steps = 20 if case == "huge" else 8
    for _ in range(steps):
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    row = {"case": case, "peak MiB": peak() - before, "steps": steps, "seconds": time.perf_counter() - start}
    if case == "huge":
        row |= saved_and_loaded(ss, sparse, lambda: attached(make("meta")))
    return row


def saved_and_loaded(ss, sparse, another) -> dict:
    """Save, load into a second model made the same way, and compare."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.sparse.safetensors"
        ss.save(sparse, path)
        _, second = another()
        ss.load(path, second.model)
        ours, theirs = sparse.model.state_dict(), second.model.state_dict()
        same = all(bool((ours[key] == theirs[key]).all()) for key in ours)
        weights = sum(site.layer.shape[0] * site.layer.shape[1] for site in sparse._topology.sites.values())
        return {
            "dense weights": weights,
            "file MB": path.stat().st_size / 1e6,
            "loaded equal": same,
            "peak with load MiB": peak(),
        }


def main() -> None:
    """Every case in its own process; ratios to dense."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(train(options.case)))
        return
    rows = []
    for case in ("dense", "masked", "sparse", "sparse, RigL", "huge"):
        out = subprocess.run(
            [sys.executable, __file__, "--case", case], capture_output=True, text=True, check=True
        )
        row = json.loads(out.stdout)
        if rows and case != "huge":
            row["less than dense"] = rows[0]["peak MiB"] / row["peak MiB"]
        rows.append(row)
        print(row, flush=True)
    if options.json:
        with options.json.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)


if __name__ == "__main__":
    main()
