"""Kill a run with SIGKILL at random moments, rerun the same command each time, and compare with one never stopped.

By hand: ``python tests/training/kill_twenty.py [kills] [seed]``. The weights, masks, optimizer state and random states
(all in the checkpoint), the metrics, the final figures and the compact file must be the same bytes.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2] / "src"
COMPARED = ("checkpoint", "metrics.jsonl", "net.sparse.safetensors", "result.json", "recipe.yaml")
RECIPE = """
data: {name: digits, batch_size: 16, augment: crop}
model: {name: small-cnn, widths: [8, 16]}
method: {name: rigl, density: 0.2, update_interval: 10}
source: {name: random, density: 0.5}
optimizer: {name: adamw, lr: 2e-3, weight_decay: 0.01}
schedule: {name: cosine, warmup: 20}
train: {steps: STEPS, accumulate: 2, clip_norm: 1.0, label_smoothing: 0.1, log_every: 7, checkpoint_every: 11}
"""


def start(folder: Path) -> subprocess.Popen[bytes]:
    """The command, in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "startsparse", "train", "recipe.yaml", "--quiet"]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def prepare(folder: Path, steps: int) -> Path:
    """A folder with the recipe in it."""
    folder.mkdir()
    (folder / "recipe.yaml").write_text(RECIPE.replace("STEPS", str(steps)))
    return folder


def finish(folder: Path, process: subprocess.Popen[bytes]) -> dict[str, str]:
    """Wait for the end; the hash of every file that must not depend on how often the run was stopped."""
    _, errors = process.communicate()
    if process.returncode != 0:
        raise RuntimeError(errors.decode())
    (run,) = (folder / "runs").iterdir()
    return {name: hashlib.sha256((run / name).read_bytes()).hexdigest() for name in COMPARED}


def kill_once(folder: Path, moment: random.Random, spread: float) -> bool:
    """Start, kill at a random moment (mostly after new steps were made); False if the run was done before."""
    process = start(folder)
    began = time.monotonic()
    if moment.random() < 0.2:  # also while it starts, or reads its checkpoint
        until = began + moment.uniform(0, 4)
    else:
        before = progress(folder)
        while progress(folder) == before and process.poll() is None:
            time.sleep(0.005)
        until = time.monotonic() + moment.uniform(0, spread)
    while time.monotonic() < until and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return process.returncode == -signal.SIGKILL


def progress(folder: Path) -> list[tuple[int, int]]:
    """Something that changes with every checkpoint."""
    found = folder.glob("runs/*/checkpoint")
    return [(stat.st_mtime_ns, stat.st_ino) for stat in (file.stat() for file in found)]


def compare(folder: Path, kills: int, steps: int, seed: int, spread: float) -> tuple[int, list[str]]:
    """(kills that hit, files that differ) of a killed run against an uninterrupted one."""
    whole = prepare(folder / "whole", steps)
    uninterrupted = start(whole)
    killed, moment = prepare(folder / "killed", steps), random.Random(seed)
    hits = sum(kill_once(killed, moment, spread) for _ in range(kills))
    expected, found = finish(whole, uninterrupted), finish(killed, start(killed))
    return hits, [name for name in COMPARED if found[name] != expected[name]]


def main() -> int:
    """Twenty kills, or as many as asked for."""
    kills = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    with tempfile.TemporaryDirectory() as folder:
        hits, different = compare(Path(folder), kills, 120 * kills, seed, spread=0.4)
    print(
        f"{hits} of {kills} kills hit a running process; files that differ: {', '.join(different) or 'none'}"
    )
    return 1 if different or hits < kills else 0


if __name__ == "__main__":
    sys.exit(main())
