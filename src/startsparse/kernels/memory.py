"""Memory that steps reuse: scratch of the kernels, and optionally the pages of big activations."""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable

import torch
from torch import Tensor

_local = threading.local()
lenders: list[
    Callable[[tuple[int, int]], None]
] = []  # told in each thread where its scratch buffer is, (0, 0) for none


def scratch(floats: int = 0) -> Tensor:
    """This thread's scratch buffer (float32), grown to at least ``floats``. Its content does not survive
    another call."""
    buffer = getattr(_local, "buffer", None)
    if buffer is None or buffer.numel() < floats:
        with torch.inference_mode(False):
            buffer = _local.buffer = torch.empty(max(floats, 1024), dtype=torch.float32)
        _local.room = buffer.data_ptr(), buffer.numel()
        for lend in lenders:
            lend(_local.room)
    return buffer


def room() -> tuple[int, int]:
    """Where this thread's scratch buffer begins, and how many floats it holds."""
    found = getattr(_local, "room", None)
    if found is None:
        buffer = scratch()
        return buffer.data_ptr(), buffer.numel()
    return found


def release_scratch() -> None:
    """Give this thread's scratch back."""
    _local.buffer = _local.room = None
    for lend in lenders:
        lend((0, 0))


def keep_pages() -> bool:
    """Let the C library keep freed memory, so that big activations do not fault their pages in at every step.

    By default glibc maps each block above 32 MB afresh and gives it back when freed: 33 MB cost about 10 ms
        in page faults,
    several times the work done on them. After this call, freed memory stays with the process (its peak does
    not change, its resting size does), for all threads and libraries in it, until it ends. Call it once,
    before training.

    Returns:
        Whether the C library could be told; False where it is not glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    trim_threshold, mmap_max = -1, -4
    return bool(mallopt(mmap_max, 0)) and bool(mallopt(trim_threshold, 2**31 - 1))
