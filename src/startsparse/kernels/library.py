"""Find, build and load the compiled kernels; or say once that there are none, and use plain torch.

In this order: the library shipped beside this file; the one built earlier into the user's cache; one built
now, once, by the system's C++ compiler; the torch fallback, with a warning. Nothing is compiled, loaded or
warned about at import.

Environment:
    STARTSPARSE_KERNELS: ``auto`` (default), or ``torch`` to use the fallback.
    STARTSPARSE_CACHE: the folder for built libraries; default ``$XDG_CACHE_HOME/startsparse`` or
        ``~/.cache/startsparse``.
    STARTSPARSE_ISA: ``avx512``, ``avx2`` or ``portable``; default: the widest that the machine has.
    CXX: the compiler.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import tempfile
import threading
import warnings
from pathlib import Path

import torch  # first: its OpenMP runtime is the one the kernels share

from startsparse.kernels import build
from startsparse.kernels.fallback import TorchBackend
from startsparse.kernels.native import NativeBackend

VERSION = 1

_lock = threading.Lock()
_backend: NativeBackend | TorchBackend | None = None


def backend() -> NativeBackend | TorchBackend:
    """What computes: the compiled kernels where they can be had, else torch. Decided at the first call."""
    global _backend
    if _backend is None:
        with _lock:
            if _backend is None:
                _backend = _choose()
    return _backend


def reset() -> None:
    """Forget the choice, so that the next call decides again. For tests and after a change of the
    environment."""
    global _backend
    with _lock:
        _backend = None


def cache_folder() -> Path:
    """Where libraries built on this machine are kept."""
    if asked := os.environ.get("STARTSPARSE_CACHE"):
        return Path(asked)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "startsparse"


def _choose() -> NativeBackend | TorchBackend:
    asked = os.environ.get("STARTSPARSE_KERNELS", "auto")
    if asked not in ("auto", "torch"):
        raise ValueError(f"STARTSPARSE_KERNELS must be 'auto' or 'torch', not {asked!r}")
    if asked == "torch":
        return TorchBackend()
    shipped = Path(__file__).parent / build.NAME
    if shipped.exists() and (library := _open(shipped)):
        return NativeBackend(library)
    try:
        return NativeBackend(_from_cache())
    except (build.CompileError, OSError) as error:
        warnings.warn(
            "startsparse: the sparse kernels could not be built; torch computes the same results more slowly "
            f"({error})",
            RuntimeWarning,
            stacklevel=4,
        )
        return TorchBackend()


def _from_cache() -> ctypes.CDLL:
    """The cached library of this source, built first where it is missing or damaged."""
    stem = f"kernels-{build.source_key()}"
    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for path in sorted(folder.glob(f"{stem}-*.so")):
            if _digest(path) == path.stem.rpartition("-")[2] and (library := _open(path)):
                return library
        return _build_into(folder, stem)
    except (PermissionError, FileExistsError, NotADirectoryError, RuntimeError) as error:
        if isinstance(error, build.CompileError):
            raise
    with tempfile.TemporaryDirectory(
        prefix="startsparse-"
    ) as folder:  # no home to write to: for this process only
        return _build_into(Path(folder), stem)


def _build_into(folder: Path, stem: str) -> ctypes.CDLL:
    """Build; the file's name ends in its own digest, so that a damaged one is never loaded."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=".new-") as scratch:
        fresh = Path(scratch) / build.NAME
        build.build(fresh)
        path = folder / f"{stem}-{_digest(fresh)}.so"
        os.replace(fresh, path)
    library = _open(path)
    if library is None:
        raise build.CompileError(f"{path} was built but does not load")
    return library


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _open(path: Path) -> ctypes.CDLL | None:
    """The loaded library, or None where it is not one, or not one of this version of the source."""
    try:
        library = ctypes.CDLL(str(path))
        library.ss_source.restype = ctypes.c_char_p
        fits = library.ss_version() == VERSION and library.ss_source() == build.source_key().encode()
    except (OSError, AttributeError):
        return None
    return library if fits else None


def threads() -> int:
    """Threads a kernel may use: torch's number, at most one per core; one in a forked child, whose pool is
    gone."""
    return 1 if _forked else min(torch.get_num_threads(), _CORES)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


def _in_child() -> None:
    global _forked
    _forked = True


_CORES = _cores()
_forked = False
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
