"""Checkpoints: everything a stopped run needs to go on as if it never stopped, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from startsparse.training import seeds
from startsparse.training.files import DamagedFile, load_tree, save_tree
from startsparse.training.loop import Job

FORMAT = 1


class CheckpointError(ValueError):
    """A checkpoint that cannot be taken up; the message names the file and the remedy."""


def save(path: Path, job: Job, sparsifier: Any, metrics_length: int) -> None:
    """Write the state of a run between two steps, atomically.

    Args:
        path: the file; what stood there stays until the new one is whole.
        job: model, optimizer, learning rate, scaler, position in the data, sums of the current metrics interval.
        sparsifier: anything with ``state_dict``, or None for a dense run.
        metrics_length: bytes of the metrics file at this moment: a resumed run cuts off what came after.

    Raises:
        OSError: it could not be written (a full disk); the old checkpoint is intact.
    """
    state = {
        "format": FORMAT,
        "job": job.state_dict(),
        "sparsifier": None if sparsifier is None else sparsifier.state_dict(),
        "random": seeds.capture(),
        "metrics_length": metrics_length,
    }
    save_tree(path, state)


def load(path: Path, job: Job, sparsifier: Any) -> int:
    """Put a run back to where ``save`` saw it; returns the length the metrics file had.

    Raises:
        CheckpointError: the file is damaged or of another run.
    """
    try:
        state = load_tree(path)
        if state["format"] != FORMAT:
            raise DamagedFile(f"{path} has format {state['format']!r}, this version reads {FORMAT}")
        job.load_state_dict(state["job"])
        if (state["sparsifier"] is None) != (sparsifier is None):
            raise DamagedFile(
                f"{path} is of a run {'without' if state['sparsifier'] is None else 'with'} a method"
            )
        if sparsifier is not None:
            sparsifier.load_state_dict(state["sparsifier"])
        seeds.restore(state["random"])
        return int(state["metrics_length"])
    except (DamagedFile, KeyError, TypeError, RuntimeError, ValueError) as error:
        reason = f"{error}" if str(path) in str(error) else f"{path} does not fit this run: {error}"
        raise CheckpointError(f"{reason}. Remove {path} to start this run from its beginning") from error
