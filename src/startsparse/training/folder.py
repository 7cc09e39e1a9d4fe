"""A run's folder is its identity: what lies in it belongs to one recipe, and one process at a time writes to it."""

from __future__ import annotations

import contextlib
import json
import platform
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import startsparse as ss
from startsparse.training.files import DamagedFile, read_json, remove_temporaries, write_atomic
from startsparse.training.metrics import JsonLines
from startsparse.training.names import require
from startsparse.training.reading import read_yaml
from startsparse.training.recipe import Recipe, differences


class FolderError(RuntimeError):
    """A run's folder that cannot be used; the message says why and what to do."""


class RunFolder:
    """The files of one run, by name.

    Attributes:
        path: the folder.
        metrics: what the recipe determines, one JSON object per line.
        timing: what the clock said.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.metrics = JsonLines(self.path / "metrics.jsonl")
        self.timing = JsonLines(self.path / "timing.jsonl")

    @property
    def checkpoint(self) -> Path:
        """Where the run stands."""
        return self.path / "checkpoint"

    @property
    def net(self) -> Path:
        """The compact file of the trained net."""
        return self.path / "net.sparse.safetensors"

    @property
    def fused(self) -> Path:
        """Which layers of a model that is not of this library run as one operation, and which do not, and why."""
        return self.path / "fused.txt"

    @property
    def result(self) -> dict[str, Any] | None:
        """The final figures, or None as long as the run is not done.

        Raises:
            DamagedFile: they cannot be read.
        """
        file = self.path / "result.json"
        try:
            return read_json(file) if file.exists() else None
        except DamagedFile as error:
            raise DamagedFile(f"{error}: remove it and train again") from error

    def write_result(self, result: dict[str, Any]) -> None:
        """Note the final figures: from here on the run is done."""
        write_atomic(self.path / "result.json", json.dumps(result, indent=2).encode() + b"\n")

    def check(self, recipe: Recipe) -> None:
        """Refuse a folder that belongs to another recipe.

        Raises:
            FolderError: the differences are named.
        """
        file = self.path / "recipe.yaml"
        if file.exists() and (found := differences(read_yaml(file), recipe.resolved())):
            raise FolderError(
                f"{self.path} belongs to another recipe: {'; '.join(found)}. Remove the folder or choose another `out`"
            )

    def claim(self, recipe: Recipe) -> None:
        """Write the resolved recipe and the versions down, if the folder has none; check them, if it has."""
        self.check(recipe)
        file, versions = self.path / "recipe.yaml", self.path / "version.json"
        if not file.exists():
            write_atomic(versions, json.dumps(environment(), indent=2).encode() + b"\n")
            write_atomic(
                file, require("yaml", "a recipe").safe_dump(recipe.resolved(), sort_keys=False).encode()
            )
        elif versions.exists() and (begun := read_json(versions)) != environment():
            changed = [f"{key} {value}, now {environment().get(key)}" for key, value in begun.items()
                       if environment().get(key) != value]  # fmt: skip
            warnings.warn(
                f"{self.path} was begun with {', '.join(changed)}: it goes on, but not bit for bit",
                stacklevel=2,
            )

    @contextlib.contextmanager
    def lock(self, wait: bool = False) -> Iterator[None]:
        """Hold the folder for this process; the system lets go of it however the process ends.

        Args:
            wait: until another process that is at it has done.

        Raises:
            FolderError: another process is at it, and it is not waited for.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            import fcntl
        except ImportError:  # no such locks on this system
            yield
            return
        with open(self.path / ".lock", "wb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise FolderError(
                    f"another process is running in {self.path}; wait for it or stop it"
                ) from error
            remove_temporaries(self.path)
            yield


def environment() -> dict[str, Any]:
    """What besides the recipe decides the bits of a run."""
    return {
        "startsparse": ss.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
    }


def find_runs(out: str | Path) -> list[RunFolder]:
    """The run folders inside ``out``, by name: of one stage and of several."""
    files = [file for name in ("recipe.yaml", "stages.json") for file in Path(out).glob(f"*/{name}")]
    return [RunFolder(folder) for folder in sorted(file.parent for file in files)]
