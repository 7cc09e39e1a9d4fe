"""Compile the kernels: as ``pip install`` builds the package, or at first use (see ``library``).

Nothing but a C++17 compiler with OpenMP is needed: no header of torch or Python, so one library serves every
version of both. The one source of the kernels is compiled once per instruction set, side by side, and linked
into one library, which chooses at run time. This file imports nothing outside the standard library: ``setup.py``
runs it where the package is not installed yet.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from functools import lru_cache
from pathlib import Path

SOURCE = Path(__file__).parent / "csrc"

FLAGS = (
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fopenmp",
    "-fvisibility=hidden",
    "-ffp-contract=fast",
    "-fno-math-errno",
)
COMMON = ("pattern.cpp", "positions.cpp", "ranking.cpp", "statistics.cpp", "entry.cpp")
X86 = {
    "portable": ("-DSS_WIDTH=4",),
    "avx2": ("-DSS_WIDTH=8", "-mavx2", "-mfma"),
    "avx512": ("-DSS_WIDTH=16", "-mavx2", "-mfma", "-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw"),
}


class CompileError(RuntimeError):
    """No compiler was found, or it refused; the message says which and why."""


def instruction_sets() -> dict[str, tuple[str, ...]]:
    """Name -> compiler flags of each instruction set to build for on this machine."""
    if platform.machine().lower() in ("x86_64", "amd64"):
        return X86
    return {"portable": X86["portable"]}


@lru_cache(maxsize=1)
def source_key() -> str:
    """A hash of all that decides what the library contains: sources, flags and machine."""
    digest = hashlib.sha256()
    for path in sorted(SOURCE.iterdir()):
        if path.suffix in (".cpp", ".h"):
            digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    digest.update(repr((FLAGS, instruction_sets(), platform.machine(), sys.platform)).encode())
    return digest.hexdigest()[:16]


def find_compiler() -> str:
    """Path of the C++ compiler: ``$CXX`` where it is set, else the first of c++, g++, clang++ on the path."""
    asked = os.environ.get("CXX")
    for name in (asked,) if asked else ("c++", "g++", "clang++"):
        if path := shutil.which(name):
            return path
    raise CompileError(f"no C++ compiler found (looked for {asked or 'c++, g++, clang++'})")


def build_into(folder: Path) -> Path:
    """Compile to a file of a folder whose name says of which source it is, and ends in the digest of its content.

    So a library of another source, or a damaged one, is known before it is loaded.

    Raises:
        CompileError: No compiler, or it failed.
    """
    with tempfile.TemporaryDirectory(dir=folder, prefix=".new-") as scratch:
        fresh = Path(scratch) / "library"
        build(fresh)
        path = folder / f"kernels-{source_key()}-{digest(fresh)}.so"
        os.replace(fresh, path)
    return path


def libraries(folder: Path) -> list[Path]:
    """The libraries that ``build_into`` left in a folder, of this source first."""
    ours = f"kernels-{source_key()}-"
    return sorted(folder.glob("kernels-*.so"), key=lambda path: (not path.name.startswith(ours), path.name))


def digest(path: Path) -> str:
    """A hash of a file's content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def build(target: Path, extra: tuple[str, ...] = ()) -> None:
    """Compile and link the library to ``target``, which appears at once and whole, or not at all.

    Args:
        target: Path of the library to write.
        extra: More compiler flags (the sanitizers' tests use them).

    Raises:
        CompileError: No compiler, or it failed.
    """
    compiler = find_compiler()
    sets = instruction_sets()
    define = (f'-DSS_SOURCE="{source_key()}"', *(("-DSS_X86",) if "avx2" in sets else ()))
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".build-") as folder:
        jobs = []
        for name in COMMON:
            jobs.append((name, define))
        for name, flags in sets.items():
            jobs.append(("isa.cpp", (*flags, f"-DSS_ISA={name}")))
        commands, objects = [], []
        for i, (name, flags) in enumerate(jobs):
            objects.append(os.path.join(folder, f"{i}.o"))
            commands.append([compiler, *FLAGS, *extra, *flags, "-c", str(SOURCE / name), "-o", objects[-1]])
        run_all(commands)
        library = os.path.join(folder, "library.so")
        run_all([[compiler, "-shared", "-fopenmp", *extra, *objects, "-o", library]])
        os.replace(library, target)


def run_all(commands: list[list[str]]) -> None:
    """Run commands side by side; raise with the first failure's own words."""
    running = []
    try:
        for command in commands:
            running.append(
                subprocess.Popen(
                    command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
                )
            )
    except OSError as error:
        for process in running:
            process.communicate()
        raise CompileError(f"{commands[0][0]} does not start: {error}") from error
    results = [(process.communicate()[0], process.returncode) for process in running]
    for command, (output, code) in zip(commands, results, strict=True):
        if code:
            words = output.decode(errors="replace").strip()[-2000:]
            raise CompileError(f"{' '.join(command)} failed with exit code {code}:\n{words}")
