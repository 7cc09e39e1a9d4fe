"""Finished runs, read from their folders; what is half-written is refused by name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from startsparse.experiments import staged
from startsparse.training import reading
from startsparse.training.folder import RunFolder

_NOT_SETTINGS = {
    "seed",
    "name",
    "out",
    "data.root",
    "train.checkpoint_every",
    "train.log_every",
    "train.device",
}


class ResultsError(ValueError):
    """Runs that cannot be compared, or folders that hold none; the message names them."""


@dataclass(frozen=True)
class Run:
    """One finished run.

    Attributes:
        folder: where it lies.
        seed: of the run; runs with the same one are a pair.
        settings: dotted path -> value of its recipe, without the seed and what does not change the outcome.
        result: its final figures.
    """

    folder: Path
    seed: int
    settings: dict[str, Any]
    result: dict[str, Any]

    @property
    def samples(self) -> int:
        """Training examples it has seen, in all its stages."""
        if "costs" in self.result:
            return self.result["costs"]["dense_samples"] + self.result["costs"]["sparse_samples"]
        per_step = self.settings["data.batch_size"] * self.settings["train.accumulate"]
        return self.result["steps"] * per_step

    @property
    def seconds(self) -> float:
        """Measured time of its training steps, in all its stages."""
        if "costs" in self.result:
            return self.result["costs"]["seconds"]
        return sum(self.laps().values())

    def laps(self) -> dict[int, float]:
        """Step -> measured seconds since the row before; of steps made again after a stop, the last time counts."""
        return {row["step"]: row["seconds"] for row in RunFolder(self.folder).timing.rows()}

    def validations(self) -> list[dict[str, Any]]:
        """The rows of its metrics that look at the held-out part, in order."""
        return [row for row in RunFolder(self.folder).metrics.rows() if row["kind"] == "validation"]


def read(folder: Path) -> Run:
    """Read one run.

    Raises:
        ResultsError: no run is there, or it has not ended.
    """
    if not _is_run(folder):
        raise ResultsError(f"{folder} is no folder of a run: it has no recipe.yaml")
    several = staged.is_staged(folder)
    flat = (
        staged.settings(staged.read_file(folder))
        if several
        else reading.flatten(reading.read_yaml(folder / "recipe.yaml"))
    )
    try:
        result = RunFolder(folder).result
    except ValueError as error:
        raise ResultsError(str(error)) from error
    if result is None:
        raise ResultsError(f"{folder} has not ended{_stopped(folder)}: train it again, or leave it out")
    seed = flat["seed"]
    settings = {
        path: "of the run" if path.endswith(".seed") and value == seed else value
        for path, value in flat.items()
        if path not in _NOT_SETTINGS
    }
    return Run(folder, seed, settings, result)


def gather(paths: Iterable[str | Path]) -> list[Run]:
    """Read the runs that are, or lie in, the given folders; one that is named twice counts once.

    Raises:
        ResultsError: with a line for each folder that cannot be read.
    """
    folders: dict[Path, None] = {}
    wrong: list[str] = []
    for path in map(Path, paths):
        inside = [path] if _is_run(path) else sorted(one for one in path.glob("*") if _is_run(one))
        if not inside:
            wrong.append(f"no runs in {path}" if path.is_dir() else f"{path} does not exist")
        folders |= dict.fromkeys(inside)
    runs = []
    for folder in folders:
        try:
            runs.append(read(folder))
        except ResultsError as error:
            wrong.append(str(error))
    if wrong:
        raise ResultsError("\n".join(wrong))
    return runs


def _is_run(folder: Path) -> bool:
    return (folder / "recipe.yaml").is_file() or staged.is_staged(folder)


def _stopped(folder: Path) -> str:
    rows = RunFolder(folder).metrics.rows()
    return f" (it stopped after step {rows[-1]['step']})" if rows else " (it has only begun)"
