"""What a person sees while a run goes on: a bar on a terminal, a line per epoch elsewhere, or nothing."""

from __future__ import annotations

import sys
from typing import Any, Protocol

from startsparse.training.names import require


class Progress(Protocol):
    """Told of every step and every validation."""

    def step(self, step: int) -> None:
        """An optimizer step is done."""
        ...

    def validated(self, row: dict[str, Any]) -> None:
        """A validation is done."""
        ...

    def close(self) -> None:
        """The run is over."""
        ...


class Silent:
    """Says nothing."""

    def step(self, step: int) -> None: ...

    def validated(self, row: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


class Lines(Silent):
    """One line per validation, on standard error."""

    def __init__(self, total: int):
        self.total = total

    def validated(self, row: dict[str, Any]) -> None:
        print(f"step {row['step']}/{self.total}  {describe(row)}", file=sys.stderr, flush=True)


class Bar:
    """A rich progress bar on standard error."""

    def __init__(self, total: int, done: int):
        progress, console = (
            require("rich.progress", "the progress bar"),
            require("rich.console", "the progress bar"),
        )
        columns = (
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TimeRemainingColumn(),
        )
        self._bar = progress.Progress(*columns, console=console.Console(stderr=True))
        self._task = self._bar.add_task("training", total=total, completed=done)
        self._bar.start()

    def step(self, step: int) -> None:
        self._bar.update(self._task, completed=step)

    def validated(self, row: dict[str, Any]) -> None:
        self._bar.update(self._task, description=describe(row))

    def close(self) -> None:
        self._bar.stop()


def describe(row: dict[str, Any]) -> str:
    """A validation row in words.

    Example:
        >>> describe({"epoch": 2, "loss": 0.3, "accuracy": 0.9, "density": 0.05})
        'epoch 2: validation loss 0.3000, accuracy 90.00 %, density 0.05'
    """
    return (
        f"epoch {row['epoch']}: validation loss {row['loss']:.4f}, accuracy {100 * row['accuracy']:.2f} %, "
        f"density {row['density']:.6g}"
    )


def open_progress(total: int, done: int, wanted: bool = True) -> Progress:
    """The progress that fits where standard error goes."""
    if not wanted:
        return Silent()
    return Bar(total, done) if sys.stderr.isatty() else Lines(total)
