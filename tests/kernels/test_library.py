"""Building, caching and loading: no compiler, a damaged cache, forks, instruction sets, sanitizers."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from startsparse import kernels
from startsparse.kernels import build, library, node

RANDOM_SHAPES = Path(__file__).parent / "random_shapes.py"

try:
    COMPILER = build.find_compiler()
except build.CompileError:
    COMPILER = None
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no compiler on this machine")


@pytest.fixture
def undecided(monkeypatch, tmp_path_factory):
    """The library as it is before the first call, with none beside the package."""
    monkeypatch.setattr(library, "_backend", None)
    monkeypatch.setattr(library, "SHIPPED", tmp_path_factory.mktemp("shipped"))
    monkeypatch.delenv("STARTSPARSE_KERNELS", raising=False)
    monkeypatch.setenv("STARTSPARSE_NODE", "python")
    node.forget()
    yield
    node.forget()


def run(*arguments: str, **environment: str) -> str:
    """A Python program of its own; its output."""
    path = os.pathsep.join(str(p) for p in [Path(kernels.__file__).parents[2], *sys.path] if str(p))
    done = subprocess.run(
        [sys.executable, *arguments],
        env={
            **os.environ,
            "PYTHONPATH": path,
            "OMP_NUM_THREADS": "2",
            "STARTSPARSE_NODE": "python",
            **environment,
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def instant(undecided, monkeypatch):
    """Compiling as a copy of the library that is there: its bytes, and the calls."""
    built = []
    real = Path(library.backend().library._name).read_bytes()

    def copy(target: Path, extra: tuple = ()) -> None:
        built.append(target)
        target.write_bytes(real)

    library.reset()
    monkeypatch.setattr(build, "build", copy)
    return real, built


def layer() -> torch.Tensor:
    pattern = kernels.Pattern.build(torch.tensor([0, 3]), 2, 2)
    return kernels.sparse_linear(torch.ones(1, 2), torch.tensor([2.0, 3.0]), pattern.blob, 2)


def test_importing_compiles_and_loads_nothing(tmp_path):
    program = (
        "import startsparse.kernels.library as l, os; assert l._backend is None; "
        f"assert not os.path.exists({str(tmp_path / 'cache')!r})"
    )
    run("-c", program, STARTSPARSE_CACHE=str(tmp_path / "cache"), CXX="/nonexistent")


def test_without_a_compiler_torch_computes_and_says_so_once(undecided, monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("STARTSPARSE_CACHE", str(tmp_path))
    with pytest.warns(RuntimeWarning, match="no-such-compiler"):
        assert layer().tolist() == [[2, 3]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert layer().tolist() == [[2, 3]]
    assert library.backend().name == "torch"


def test_a_compiler_that_fails_is_quoted(undecided, monkeypatch, tmp_path):
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\necho out of order\nexit 3\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("STARTSPARSE_CACHE", str(tmp_path / "cache"))
    with pytest.warns(RuntimeWarning, match="out of order"):
        assert layer().tolist() == [[2, 3]]


def test_the_fallback_can_be_asked_for(undecided, monkeypatch):
    monkeypatch.setenv("STARTSPARSE_KERNELS", "torch")
    assert layer().tolist() == [[2, 3]] and library.backend().name == "torch"
    library.reset()
    monkeypatch.setenv("STARTSPARSE_KERNELS", "fortran")
    with pytest.raises(ValueError, match="fortran"):
        library.backend()


@needs_compiler
def test_a_damaged_cache_is_rebuilt(undecided, instant, tmp_path, monkeypatch):
    real, built = instant
    monkeypatch.setenv("STARTSPARSE_CACHE", str(tmp_path))
    assert library.backend().name == "native" and len(built) == 1
    (cached,) = tmp_path.glob("*.so")
    library.reset()
    assert library.backend().name == "native" and len(built) == 1  # from the cache

    cached.unlink()
    cached.write_bytes(real[: len(real) // 2])
    library.reset()
    assert library.backend().name == "native" and len(built) == 2
    assert cached.read_bytes() == real and layer().tolist() == [[2, 3]]
    assert [path.name for path in tmp_path.iterdir()] == [cached.name]  # nothing half-built is left


@needs_compiler
def test_a_library_of_another_source_is_not_loaded(monkeypatch):
    path = Path(library.backend().library._name)
    assert not isinstance(library._open(path), str)
    monkeypatch.setattr(build, "source_key", lambda: "0" * 16)
    assert library._open(path) == "was compiled from another source"


@needs_compiler
def test_the_library_beside_the_package_is_taken_first(undecided, instant, tmp_path, monkeypatch):
    _, built = instant
    monkeypatch.setenv("STARTSPARSE_CACHE", str(tmp_path / "cache"))
    shipped = build.build_into(library.SHIPPED)
    assert library.backend().name == "native" and Path(library.backend().library._name) == shipped
    assert len(built) == 1 and not (tmp_path / "cache").exists()


@needs_compiler
@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:5000]), "is damaged"),
        (lambda path: path.rename(str(path).replace(build.source_key(), "0" * 16)), "another source"),
        (lambda path: _write_named(path, b"\x7fELF of another processor"), "does not load here"),
    ],
)
def test_a_shipped_library_that_does_not_fit_is_refused_and_built(
    undecided, instant, tmp_path, monkeypatch, damage, why
):
    _, built = instant
    monkeypatch.setenv("STARTSPARSE_CACHE", str(tmp_path))
    damage(build.build_into(library.SHIPPED))
    with pytest.warns(RuntimeWarning, match=why):
        assert layer().tolist() == [[2, 3]]
    assert library.backend().name == "native" and len(built) == 2
    assert Path(library.backend().library._name).parent == tmp_path


def _write_named(path: Path, content: bytes) -> None:
    """Other content under the name that belongs to it."""
    path.write_bytes(content)
    path.rename(path.with_name(f"kernels-{build.source_key()}-{build.digest(path)}.so"))


def test_an_unwritable_cache_is_no_obstacle(undecided, monkeypatch, tmp_path):
    file = tmp_path / "file"
    file.write_text("not a folder")
    monkeypatch.setenv("STARTSPARSE_CACHE", str(file / "below"))
    monkeypatch.setattr(library, "_built_in", lambda folder: pytest.fail("") if folder == file else "built")
    assert library._from_cache() == "built"


def test_a_forked_child_computes():
    program = """
import os, sys, torch
from startsparse import kernels
torch.set_num_threads(2)
pattern = kernels.Pattern.from_mask(torch.rand(300, 300) < 0.3)
x, values = torch.randn(128, 300), torch.randn(pattern.nnz)
y = kernels.sparse_linear(x, values, pattern.blob, 300)
child = os.fork()
if child == 0:
    z = kernels.sparse_linear(x, values, pattern.blob, 300)
    torch.set_num_threads(1)  # for torch's own comparison, which would wait for the parent's threads
    os._exit(0 if torch.allclose(y, z, atol=1e-4) else 1)
assert os.waitpid(child, 0)[1] == 0
"""
    run("-W", "ignore", "-c", program)


def test_threads_follow_torch_up_to_the_cores():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert library.threads() == 1
        torch.set_num_threads(1000)
        assert library.threads() == len(os.sched_getaffinity(0))
    finally:
        torch.set_num_threads(before)


@needs_compiler
@pytest.mark.parametrize(("isa", "width"), [("portable", 4), ("avx2", 8)])
def test_other_instruction_sets(isa, width):
    found = run(str(RANDOM_SHAPES), "-", "40", STARTSPARSE_ISA=isa).split()
    assert found[0] == "native" and int(found[1]) in (width, 4)  # 4 where the machine lacks it


@needs_compiler
def test_one_openmp_runtime_and_kept_pages():
    program = """
import pathlib
from startsparse import kernels
assert kernels.keep_pages() in (True, False)
maps = pathlib.Path("/proc/self/maps")
if kernels.backend().name == "native" and maps.exists():
    assert len({name for name in maps.read_text().split() if "libgomp" in name}) == 1
"""
    run("-c", program)


@needs_compiler
def test_sanitizers_find_nothing(tmp_path, monkeypatch):
    """Random shapes under AddressSanitizer and UndefinedBehaviorSanitizer, unoptimised.

    The widest vectors, lowered to what every machine has: the indices are those of AVX-512.
    """
    runtimes = [_runtime("libasan.so"), _runtime("libubsan.so")]
    if not all(runtimes):
        pytest.skip("this compiler has no sanitizers")
    target = tmp_path / "kernels.so"
    monkeypatch.setattr(build, "instruction_sets", lambda: {"portable": ("-DSS_WIDTH=16",)})
    build.build(target, ("-O0", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"))
    environment = {"LD_PRELOAD": " ".join(runtimes), "ASAN_OPTIONS": "detect_leaks=0"}
    assert "native 16" in run(str(RANDOM_SHAPES), str(target), "60", **environment)


def _runtime(name: str) -> str | None:
    found = subprocess.run(
        [COMPILER, f"-print-file-name={name}"], capture_output=True, text=True, check=True
    ).stdout.strip()
    return found if os.path.isabs(found) else None
