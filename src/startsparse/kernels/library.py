"""Find, build and load the compiled kernels; or say once that there are none, and use plain torch.

In this order: the library that was compiled as the package was installed, beside this file; the one built earlier into the user's cache; one built
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
import os
import tempfile
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import torch  # first: its OpenMP runtime is the one the kernels share

from startsparse.kernels import build
from startsparse.kernels.fallback import TorchBackend
from startsparse.kernels.native import NativeBackend

VERSION = 7
SHIPPED = Path(__file__).parent

_lock = threading.Lock()
_backend: NativeBackend | TorchBackend | None = None
forgetting: list[Callable[[], None]] = []  # who else forgets what follows from the choice


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
    for forget in forgetting:
        forget()


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
    if library := _find(SHIPPED, strict=True):
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


def _find(folder: Path, strict: bool) -> ctypes.CDLL | None:
    """The library of this source in a folder, or None; if ``strict``, others are pointed out."""
    refused = None
    for path in build.libraries(folder):
        library = _open(path)
        if not isinstance(library, str):
            return library
        refused = refused or f"{path} {library}"
    if strict and refused:
        warnings.warn(
            f"startsparse: the compiled kernels of the installation are not used: {refused}; a library of this "
            f"machine's own is taken from {cache_folder()} (installing startsparse anew mends this)",
            RuntimeWarning,
            stacklevel=5,
        )
    return None


def _from_cache() -> ctypes.CDLL:
    """The cached library of this source, built first where it is missing or damaged."""
    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return _find(folder, strict=False) or _built_in(folder)
    except (PermissionError, FileExistsError, NotADirectoryError, RuntimeError) as error:
        if isinstance(error, build.CompileError):
            raise
    with tempfile.TemporaryDirectory(
        prefix="startsparse-"
    ) as folder:  # no home to write to: for this process only
        return _built_in(Path(folder))


def _built_in(folder: Path) -> ctypes.CDLL:
    path = build.build_into(folder)
    library = _open(path)
    if isinstance(library, str):
        raise build.CompileError(f"{path} was built but {library}")
    return library


def _open(path: Path) -> ctypes.CDLL | str:
    """The loaded library, or why it is not to be used: what is damaged or of another source is not even loaded."""
    source, _, content = path.stem.removeprefix("kernels-").rpartition("-")
    if source != build.source_key():
        return "was compiled from another source"
    if build.digest(path) != content:
        return "is damaged"
    try:
        library = ctypes.CDLL(str(path))
        library.ss_source.restype = ctypes.c_char_p
        fits = library.ss_version() == VERSION and library.ss_source() == source.encode()
    except (OSError, AttributeError) as error:
        return f"does not load here ({error})"
    return library if fits else "is of another version"


def threads() -> int:
    """Threads a kernel may use: torch's number, at most ``most_threads``."""
    return min(torch.get_num_threads(), most_threads())


def most_threads() -> int:
    """One per core; one in a forked child, whose pool is gone."""
    return 1 if _forked else _CORES


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
