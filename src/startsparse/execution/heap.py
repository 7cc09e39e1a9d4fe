"""Freed memory goes back to the system where big layers were built or changed."""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable

FROM = 1_000_000  # live weights of sparse layers; below, nothing worth its page faults would come back


@functools.cache
def _trim() -> Callable[[int], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc alone has it


def give_back(live: int) -> None:
    """Return what the C library keeps of freed memory, after ``live`` weights were placed or moved.

    Building or moving a pattern takes several times its own size for a moment; without this, glibc keeps most of it
    until the process ends. After ``kernels.keep_pages()`` it still comes back here, at updates, not at steps.
    """
    if live >= FROM and (trim := _trim()) is not None:
        trim(0)
