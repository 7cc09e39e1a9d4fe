"""Compile and load the autograd node in C++ (``csrc/node``): for one version of torch and of Python, never needed.

It takes 15 seconds, so nobody is made to wait for it: where there is none, a process of the lowest priority compiles
it into the user's cache, and processes that begin afterwards use it. ``startsparse build`` compiles it at once, and
says why it cannot.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import platform
import subprocess
import sys
import sysconfig
import tempfile
import time
from importlib.machinery import ExtensionFileLoader
from pathlib import Path
from types import ModuleType

import torch

from startsparse.kernels import build

SOURCE = build.SOURCE / "node"
NAME = "_startsparse_node"
FLAGS = ("-std=c++20", "-O2", "-fPIC", "-shared", "-fvisibility=hidden")
LIBRARIES = ("-ltorch_cpu", "-lc10", "-ltorch_python")  # those that torch has loaded
_STALE = 600  # seconds after which whoever was compiling is taken for gone


def load(folder: Path) -> ModuleType | None:
    """The node of this source, torch and Python, or None where a folder has none that is whole."""
    for path in sorted(folder.glob(f"node-{key()}-*.so")):
        if build.digest(path) == path.stem.rpartition("-")[2] and (module := _load(path)):
            return module
    return None


def load_or_start(folder: Path) -> ModuleType | None:
    """The same; where there is none, it is being compiled afterwards, if that is possible."""
    try:
        module = load(folder)
        if module is None and can_build() is None and not _failed(folder).exists():
            _start(folder)
    except OSError:
        return None  # no home to write to
    return module


def key() -> str:
    """A hash of all that decides what the module contains."""
    digest = hashlib.sha256()
    for path in (build.SOURCE / "abi.h", *sorted(SOURCE.iterdir())):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    abi = torch.__version__, torch._C._GLIBCXX_USE_CXX11_ABI, sys.implementation.cache_tag, sys.abiflags
    digest.update(repr((FLAGS, LIBRARIES, *abi, platform.machine(), sys.platform)).encode())
    return digest.hexdigest()[:16]


def can_build() -> str | None:
    """None, or why there can be no node on this machine."""
    if not sys.platform.startswith("linux"):
        return f"the compiled autograd node is for Linux, not {sys.platform}"
    if "python" not in Path(sys.executable or "").name.lower():
        return (
            f"the program is not run by a Python of its own, but by {sys.executable or 'something unnamed'}"
        )
    for header in (_python_headers() / "Python.h", _torch() / "include/torch/csrc/autograd/function.h"):
        if not header.is_file():
            return f"{header} is missing" + (" (python3-dev)" if header.name == "Python.h" else "")
    try:
        build.find_compiler()
    except build.CompileError as error:
        return str(error)
    return None


def build_into(folder: Path) -> Path:
    """Compile to a file of a folder whose name says what it is for, and ends in the digest of its content.

    Raises:
        build.CompileError: it cannot be compiled here, or the compiler failed.
    """
    if reason := can_build():
        raise build.CompileError(reason)
    torch_folder = _torch()
    headers = torch_folder / "include", torch_folder / "include/torch/csrc/api/include", _python_headers()
    with tempfile.TemporaryDirectory(dir=folder, prefix=".new-") as scratch:
        fresh = Path(scratch) / "node"
        abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}"
        include = [word for header in headers for word in ("-isystem", str(header))]
        command = [build.find_compiler(), *FLAGS, abi, *include, str(SOURCE / "node.cpp"), "-o", str(fresh)]
        build.run_all([[*command, f"-L{torch_folder / 'lib'}", *LIBRARIES]])
        path = folder / f"node-{key()}-{build.digest(fresh)}.so"
        os.replace(fresh, path)
    return path


def _torch() -> Path:
    return Path(torch.__file__).parent


def _python_headers() -> Path:
    return Path(sysconfig.get_path("include"))


def _failed(folder: Path) -> Path:
    """Where it is kept why the compiler failed, so that it is not tried again at every start."""
    return folder / f"node-{key()}.failed"


def _load(path: Path) -> ModuleType | None:
    """None where it does not load here."""
    loader = ExtensionFileLoader(NAME, str(path))
    spec = importlib.util.spec_from_file_location(NAME, path, loader=loader)
    try:
        module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
        loader.exec_module(module)
    except ImportError:
        return None
    return module


def _start(folder: Path) -> None:
    """Have it compiled by a process that gives way to all others, unless one is at it."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = folder / f"node-{key()}.lock"
    try:
        if time.time() - lock.stat().st_mtime > _STALE:
            lock.unlink()
    except FileNotFoundError:
        pass
    try:
        os.close(os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        return
    code = (
        f"import pathlib, sys; from {__name__} import build_behind; build_behind(pathlib.Path(sys.argv[1]))"
    )
    detached = '"$@" < /dev/null > /dev/null 2>&1 &'  # nobody's child: this process need not wait for it
    words = "sh", "-c", detached, "sh", sys.executable, "-c", code, str(folder)
    try:
        subprocess.run(words, start_new_session=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        lock.unlink(missing_ok=True)


def build_behind(folder: Path) -> None:
    """What ``_start`` has started: give way, compile, keep the compiler's words where it fails."""
    os.nice(19)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")  # where memory runs out, this goes first
    try:
        build_into(folder)
    except build.CompileError as error:
        fresh = _failed(folder).with_suffix(f".{os.getpid()}")
        fresh.write_text(str(error))
        os.replace(fresh, _failed(folder))
    finally:
        (folder / f"node-{key()}.lock").unlink(missing_ok=True)
