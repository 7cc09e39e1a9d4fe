"""What a run writes down while it runs: one JSON object per line, and times in a file of their own.

``metrics.jsonl`` holds only what the recipe determines, so two runs of one recipe write the same bytes;
``timing.jsonl`` holds what the clock said.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from startsparse.training.files import DamagedFile


class JsonLines:
    """A file of JSON lines that knows its length, so that a resumed run can cut off what came after a checkpoint.

    Example:
        >>> import tempfile
        >>> lines = JsonLines(Path(tempfile.mkdtemp()) / "metrics.jsonl")
        >>> lines.write({"step": 1}); kept = lines.length; lines.write({"step": 2})
        >>> lines.cut(kept)
        >>> lines.path.read_text()
        '{"step": 1}\\n'
    """

    def __init__(self, path: Path):
        self.path = path

    @property
    def length(self) -> int:
        """Bytes in the file."""
        return self.path.stat().st_size if self.path.exists() else 0

    def write(self, row: dict[str, Any]) -> None:
        """Append one row; it is with the operating system when this returns.

        Raises:
            OSError: it could not be written (a full disk); a resumed run cuts off what was.
        """
        try:
            with open(self.path, "ab") as file:
                file.write(json.dumps(row).encode() + b"\n")
        except OSError as error:
            raise OSError(error.errno, f"{error.strerror}: the run can be resumed", str(self.path)) from error

    def rows(self) -> list[dict[str, Any]]:
        """What has been written so far; nothing, if there is no file.

        Raises:
            DamagedFile: a line is no row; names it.
        """
        found = []
        lines = self.path.read_bytes().splitlines() if self.path.exists() else []
        for number, line in enumerate(lines, 1):
            try:
                found.append(json.loads(line))
            except ValueError as error:
                raise DamagedFile(f"{self.path}:{number} is damaged ({error})") from error
        return found

    def cut(self, length: int) -> None:
        """Remove everything after ``length`` bytes.

        Raises:
            ValueError: the file is shorter than that: somebody has changed it.
        """
        if self.length < length:
            raise ValueError(
                f"{self.path} has {self.length} bytes, the checkpoint was written after {length}"
            )
        if self.path.exists():
            os.truncate(self.path, length)


class Running:
    """Loss and accuracy since the last look, kept on the device so that no step waits for it.

    Example:
        >>> running = Running("cpu")
        >>> running.add(torch.tensor(2.0), torch.tensor([[0.0, 1.0]]), torch.tensor([1]))
        >>> running.take()
        {'loss': 2.0, 'accuracy': 1.0}
    """

    def __init__(self, device: torch.device | str):
        self.loss = torch.zeros((), device=device)
        self.correct = torch.zeros((), dtype=torch.int64, device=device)
        self.count = 0

    def add(self, loss: Tensor, outputs: Tensor, labels: Tensor) -> None:
        """Count one batch: its mean loss, its outputs (..., classes) and its labels (...)."""
        self.loss += loss.detach() * labels.numel()
        self.correct += (outputs.detach().argmax(-1) == labels).sum()
        self.count += labels.numel()

    def take(self) -> dict[str, float]:
        """Mean loss and accuracy, and start again."""
        count = max(1, self.count)
        row = {"loss": self.loss.item() / count, "accuracy": self.correct.item() / count}
        self.loss.zero_()
        self.correct.zero_()
        self.count = 0
        return row

    def state_dict(self) -> dict[str, Any]:
        """The sums so far."""
        return {"loss": self.loss, "correct": self.correct, "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from saved sums."""
        self.loss.copy_(state["loss"])
        self.correct.copy_(state["correct"])
        self.count = state["count"]


class Stopwatch:
    """Time per step between two laps."""

    def __init__(self, step: int):
        self._step, self._start, self._left_out = step, time.perf_counter(), 0.0

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out what is done in here: an evaluation, a checkpoint."""
        before = time.perf_counter()
        yield
        self._left_out += time.perf_counter() - before

    def lap(self, step: int) -> dict[str, float]:
        """Seconds since the last lap, and per step of it."""
        now = time.perf_counter()
        seconds, steps = now - self._start - self._left_out, max(1, step - self._step)
        self._step, self._start, self._left_out = step, now, 0.0
        return {"step": step, "seconds": round(seconds, 6), "seconds_per_step": round(seconds / steps, 9)}
