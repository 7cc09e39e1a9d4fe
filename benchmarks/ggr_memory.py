"""Claim: what memory a topology update needs. Peak of a process at an update step over that at a plain step.

    python benchmarks/ggr_memory.py                  # ResNet-18 and ResNet-50; writes benchmarks/logs/ggr_memory.json
    python benchmarks/ggr_memory.py --net resnet18

Each net is trained with the method attached, masked, one micro-batch a step, in a process of its own that gives freed
memory back at once (``MALLOC_MMAP_THRESHOLD_``). The peak is that of resident memory from the beginning of the backward
pass to the end of ``optimizer.step()``; one small example keeps activations from hiding it, and gradients are zeroed,
not freed, so that a plain step holds them, too. The bar for a window of one step is 1.2 times the dense gradient of the
largest layer and the candidates: R weights that move, twice those and one layer's, of a score, a position and a layer's
number each (60 R bytes). With a window of two steps one accumulator a layer is kept from one step to the next and another
one is filled: shown, with no bar. Beside them stands what the plan says.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

import startsparse as ss
from startsparse.training.models import make

LOG = Path(__file__).parent / "logs" / "ggr_memory.json"
DENSITY, FRACTION, INTERVAL, UPDATES = 0.05, 0.3, 4, 4
NETS = {"resnet18": (3, 64, 64), "resnet50": (3, 64, 64)}
METHODS = {"rigl": (1,), "ggr": (1, 2)}  # the windows of each


def method_of(name: str, window: int) -> ss.methods.Method:
    """Few updates from each other, always the same share."""
    given = {"drop_fraction": FRACTION, "drop_schedule": "constant", "update_interval": INTERVAL}
    given |= {"update_end": 10**6} | ({"gradient_window": window} if name == "ggr" else {})
    return ss.methods.make(name, density=DENSITY, **given)


def status(key: str) -> int:
    """Bytes, of a line of /proc/self/status."""
    line = next(s for s in Path("/proc/self/status").read_text().splitlines() if s.startswith(key))
    return 1024 * int(line.split()[1])


def measured(net: str, method: str, window: int) -> dict:
    """One row; runs in a process of its own."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = make(net, input_shape=NETS[net], classes=1000)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    how = method_of(method, window)
    planned = ss.plan(model, how).gradients
    sparse = ss.attach(model, optimizer, how)
    x, y = torch.randn(1, *NETS[net]), torch.zeros(1, dtype=torch.int64)
    peaks: dict[bool, list[int]] = {True: [], False: []}
    for step in range(INTERVAL * (UPDATES + 1) + 1):
        optimizer.zero_grad(set_to_none=False)
        loss = nn.functional.cross_entropy(model(x), y)
        Path("/proc/self/clear_refs").write_text("5")
        loss.backward()
        optimizer.step()
        if step > INTERVAL:  # at the first one the record of visited positions begins
            kept_for_next = window > 1 and step % INTERVAL >= INTERVAL - window + 1
            if not kept_for_next:
                peaks[step % INTERVAL == 0].append(status("VmHWM"))
    sizes = {name: mask.numel() for name, mask in sparse.masks.items()}
    moved = int(FRACTION * sparse.target_count)
    extra = statistics.median(peaks[True]) - statistics.median(peaks[False])
    bar = 1.2 * 4 * max(sizes.values()) + 60 * moved
    assert planned is not None and sparse.report().num_updates == UPDATES + 1
    return {
        "net": net,
        "method": method,
        "window": window,
        "weights": sum(sizes.values()),
        "weights that move": moved,
        "extra MB": extra / 1e6,
        "bar MB": bar / 1e6 if window == 1 else None,
        "dense gradient of the largest layer MB": 4 * max(sizes.values()) / 1e6,
        "one accumulator a layer MB": 4 * sum(sizes.values()) / 1e6,
        "the plan says": str(planned),
        "holds": extra <= bar if window == 1 else None,
    }


def main() -> int:
    """Measure, print, write; 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--net", choices=[*NETS], help="this one alone; nothing is written then")
    parser.add_argument("--one", nargs=3, metavar=("NET", "METHOD", "WINDOW"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        net, method, window = options.one
        print(json.dumps(measured(net, method, int(window))))
        return 0
    rows = []
    for net in [options.net] if options.net else NETS:
        for method, windows in METHODS.items():
            for window in windows:
                command = [sys.executable, __file__, "--one", net, method, str(window)]
                exact = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
                done = subprocess.run(command, capture_output=True, text=True, check=True, env=exact)
                rows.append(json.loads(done.stdout))
                print(json.dumps(rows[-1]), flush=True)
    if not options.net:
        log = {"machine": platform.machine(), "torch": torch.__version__, "density": DENSITY, "rows": rows}
        LOG.write_text(json.dumps(log, indent=1) + "\n")
    return int(any(row["holds"] is False for row in rows))


if __name__ == "__main__":
    sys.exit(main())
