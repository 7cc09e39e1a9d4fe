"""The raw records of a claim: one JSON line per finished run, appended whole, read past a half-written end."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Record = dict[str, Any]


class RecordsError(ValueError):
    """A records file that holds something else than records."""


class Busy(RuntimeError):
    """Another process is at this claim."""


def key(params: dict[str, Any]) -> str:
    """What makes two runs the same run."""
    return json.dumps(params, sort_keys=True)


def read(path: Path) -> list[Record]:
    """The records in order, of several with the same parameters the first; a last line without an end is left out.

    Raises:
        RecordsError: a line in the middle is no record; file and line are named.
    """
    lines = (
        path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    )  # the rest after the last newline is torn
    found: dict[str, Record] = {}
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            if not isinstance(record["result"], dict):
                raise TypeError("its result is no mapping")
            found.setdefault(key(record["params"]), record)
        except (ValueError, KeyError, TypeError) as error:
            raise RecordsError(
                f"{path}:{number} is no record ({error!r}): remove the line and run again"
            ) from error
    return list(found.values())


def append(path: Path, record: Record) -> None:
    """Add one record, on the disk when this returns; a torn line of a run that was killed is cut off first."""
    with open(path, "ab+") as file:
        _cut_torn_line(file)
        file.write(json.dumps(record).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def replace(path: Path, text: str) -> None:
    """Write a whole file, or leave what is there."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _cut_torn_line(file: Any) -> None:
    file.seek(0)
    content = file.read()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        file.truncate(whole)


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Hold a claim for this process; the system lets go of it however the process ends.

    Raises:
        Busy: another process holds it.
    """
    try:
        import fcntl
    except ImportError:  # no such locks on this system
        yield
        return
    with open(folder / ".lock", "wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise Busy(f"another process is at {folder.name}; wait for it or stop it") from error
        yield
