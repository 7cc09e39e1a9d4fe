"""The wheel: the kernels compiled into it, one for every Python and torch; and without a compiler, a pure one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from startsparse.kernels import build

ROOT = Path(__file__).parents[2]
pytest.importorskip("setuptools.command.bdist_wheel", reason="setuptools is too old to build a wheel")

STEP = """
import pathlib, sys, torch
torch.set_num_threads(1)
import startsparse as ss
from startsparse.kernels import backend, library
assert pathlib.Path(ss.__file__).is_relative_to(sys.argv[1]), ss.__file__
model = torch.nn.Linear(64, 32)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
ss.attach(model, optimizer, ss.Static(0.1), execution="sparse")
model(torch.ones(4, 64)).square().sum().backward()
optimizer.step()
assert backend().name == "native"
assert pathlib.Path(backend().library._name).is_relative_to(sys.argv[1]), backend().library._name
assert not pathlib.Path(sys.argv[2]).exists()
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """What a wheel is built of, alone."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    ignored = shutil.ignore_patterns("__pycache__", "*.so", "*.egg-info")
    shutil.copytree(ROOT / "src", copy / "src", ignore=ignored)
    return copy


def wheel(checkout: Path, name: str, compiler: str) -> Path:
    """The wheel that the build of the package makes with this compiler."""
    folder = checkout / name
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "bdist_wheel", "--dist-dir", str(folder)],
        cwd=checkout,
        env={**os.environ, "CXX": compiler},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = folder.glob("*.whl")
    return path


def test_a_wheel_with_kernels_and_then_one_without(checkout, tmp_path):
    try:
        found = build.find_compiler()
    except build.CompileError:
        pytest.skip("no compiler on this machine")
    quick = tmp_path / "c++"  # optimising takes the most time, and is tested elsewhere
    quick.write_text(f'#!/bin/sh\nexec {found} "$@" -O0\n')
    quick.chmod(0o755)
    path = wheel(checkout, "compiled", str(quick))
    python, abi, platform = path.stem.split("-")[2:]
    assert (python, abi) == ("py3", "none") and platform not in ("any", "")
    with zipfile.ZipFile(path) as archive:
        names = [Path(name).name for name in archive.namelist()]
        archive.extractall(tmp_path / "site")
    libraries = [name for name in names if name.endswith(".so")]
    assert len(libraries) == 1 and build.source_key() in libraries[0]
    assert {source.name for source in build.SOURCE.rglob("*.*")} <= set(names)
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "error::RuntimeWarning",
            "-c",
            STEP,
            str(tmp_path / "site"),
            str(tmp_path / "no"),
        ],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), *filter(None, sys.path)]),
            "STARTSPARSE_CACHE": str(tmp_path / "no"),
            "CXX": "no-such-compiler",
        },
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr

    pure = wheel(checkout, "pure", "no-such-compiler")
    assert pure.stem.endswith("py3-none-any")
    with zipfile.ZipFile(pure) as archive:
        assert not [name for name in archive.namelist() if name.endswith(".so")]
