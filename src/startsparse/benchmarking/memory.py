"""Peak memory of training above the import of torch: three wide linear layers with Adam, and a net that cannot be dense.

Each case runs in a process of its own. ``huge`` has over 2 billion dense weights at 99.5 %: it is made on the meta
device, trained 20 steps, saved and loaded into a second one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .timing import Options, Row

CASES = ("dense", "masked", "sparse", "sparse, RigL")


def rows(options: Options) -> Iterator[Row]:
    """One row for each width, sparsity and case, and one for the net that cannot be dense."""
    for width in options.sizes or ((1024,) if options.quick else (8192,)):
        for sparsity in options.sparsities or (0.95,):
            dense = None
            for case in (CASES[0], CASES[2]) if options.quick else CASES:
                row = _in_a_process(case, width, sparsity, (options.batches or (128,))[0])
                dense = dense or float(str(row["peak MiB"]))
                yield row | {"less than dense": dense / max(float(str(row["peak MiB"])), 1e-3)}
    if not (options.quick or options.sizes):
        yield _in_a_process("huge", 33_000, 0.995, 128)


def _in_a_process(*arguments: object) -> Row:
    path = [str(Path(__file__).parents[2]), *filter(None, sys.path)]
    done = subprocess.run(
        [sys.executable, "-m", "startsparse.benchmarking.memory", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"measuring memory of {arguments[0]!r} failed:\n{done.stderr.strip()[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def peak() -> float:
    """Peak resident memory of this process, MiB."""
    status = Path("/proc/self/status")  # getrusage counts what the parent had when it started this process
    lines = status.read_text().splitlines() if status.exists() else []
    for line in lines:
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    try:
        import resource
    except ImportError as error:
        raise RuntimeError("peak memory is measured on POSIX systems only") from error
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def train(case: str, width: int, sparsity: float, batch: int) -> Row:
    """One case, in this process."""
    import torch
    from torch import nn

    import startsparse as ss

    torch.manual_seed(0)
    before = peak()
    layers, steps = (2, 20) if case == "huge" else (3, 8)

    def make(device: str) -> nn.Module:
        with torch.device(device):
            return nn.Sequential(*[m for _ in range(layers) for m in (nn.Linear(width, width), nn.ReLU())])

    def attached(model: nn.Module):
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        method = {"huge": ss.SET, "sparse, RigL": ss.RigL}.get(case, ss.Static)
        settings: dict[str, Any] = (
            {} if method is ss.Static else {"update_interval": 10 if case == "huge" else 5}
        )
        execution = "masked" if case == "masked" else "sparse"
        return optimizer, ss.attach(
            model, optimizer, method(1 - sparsity, **settings), total_steps=20, execution=execution
        )

    start = time.perf_counter()
    model = make("cpu" if case in ("dense", "masked") else "meta")
    if case == "dense":
        optimizer, sparse = torch.optim.Adam(model.parameters(), lr=1e-3), None
    else:
        optimizer, sparse = attached(model)
    x = torch.randn(batch, width)
    for _ in range(steps):
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    row: Row = {"case": case, "width": width, "sparsity": sparsity, "batch": batch, "steps": steps}
    row |= {"peak MiB": peak() - before, "seconds": time.perf_counter() - start}
    if case == "huge":
        row |= {"dense weights": layers * width * width}
        row |= saved_and_loaded(sparse, lambda: attached(make("meta"))[1])
    return row


def saved_and_loaded(sparse, another) -> Row:
    """Save, load into a second model made the same way, and compare."""
    import startsparse as ss

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.sparse.safetensors"
        ss.save(sparse, path)
        second = another()
        ss.load(path, second.model)
        ours, theirs = sparse.model.state_dict(), second.model.state_dict()
        same = all(bool((ours[key] == theirs[key]).all()) for key in ours)
        return {"file MB": path.stat().st_size / 1e6, "loaded equal": same, "peak with load MiB": peak()}


if __name__ == "__main__":
    print(json.dumps(train(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))))
