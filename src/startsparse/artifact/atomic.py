"""Files that are there as a whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable
from pathlib import Path

import numpy as np


def write(path: str | os.PathLike[str], parts: Iterable[np.ndarray]) -> None:
    """Write a file beside its place, force it to the disk, and move it there.

    Args:
        path: where to. A link is followed. What was there stays until the new file is complete.
        parts: the content in order, contiguous arrays.

    Raises:
        OSError: the disk is full, the folder is not there or not writable, ...; it names ``path``, the temporary
            file is gone, and what was at ``path`` is unharmed.
    """
    place = Path(os.path.realpath(path))
    temporary = place.with_name(f".{place.name[:80]}.{secrets.token_hex(6)}.tmp")
    try:
        try:
            with open(temporary, "xb") as file:
                file.writelines(part.data for part in parts)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, place)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(place.parent)
    except OSError as error:
        reason = f"cannot save: {error.strerror or error}"
        raise OSError(error.errno, reason, os.fspath(path)) from error


def _sync_folder(folder: Path) -> None:
    """Make the new name itself last through a power cut, where the system lets a folder be opened."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
