"""Compiling the autograd node: in the background, once; failures are kept, damaged files left alone."""

from __future__ import annotations

import os
import stat
import time

import pytest

from startsparse.cli.main import main
from startsparse.kernels import build, library, node, node_build


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty cache; nobody has asked for the node yet."""
    if reason := node_build.can_build():
        pytest.skip(reason)
    monkeypatch.setenv("STARTSPARSE_CACHE", str(tmp_path))
    monkeypatch.setenv("STARTSPARSE_NODE", "auto")
    monkeypatch.setattr(node, "_module", None)
    node.forget()
    yield tmp_path
    node.forget()


@pytest.fixture
def compiler(folder, monkeypatch):
    """Set the compiler to a shell script; ``$OUT`` is the file it is to write."""

    def use(script: str) -> None:
        path = folder / "compiler"
        find = 'while [ $# -gt 1 ]; do [ "$1" = -o ] && OUT=$2; shift; done'
        path.write_text(f"#!/bin/sh\n{find}\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("CXX", str(path))

    return use


def wait_for(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_it_is_compiled_behind_and_only_once(folder, compiler):
    compiler(f'echo run >> "{folder}/runs"; sleep 1; echo content > "$OUT"')
    assert node_build.load_or_start(folder) is None
    assert node_build.load_or_start(folder) is None  # is on its way
    wait_for(lambda: list(folder.glob("node-*.so")))
    wait_for(lambda: not list(folder.glob("node-*.lock")))
    assert (folder / "runs").read_text() == "run\n"
    (library_file,) = folder.glob("node-*.so")
    assert library_file.stem.rpartition("-")[2] == build.digest(library_file)
    assert not list(folder.glob(".new-*"))


def test_why_it_failed_is_kept_and_it_is_not_tried_again(folder, compiler):
    compiler(f'echo run >> "{folder}/runs"; echo "no such header" >&2; exit 1')
    assert node_build.load_or_start(folder) is None
    wait_for(lambda: list(folder.glob("node-*.failed")))
    wait_for(lambda: not list(folder.glob("node-*.lock")))
    assert "no such header" in next(folder.glob("node-*.failed")).read_text()
    assert node_build.load_or_start(folder) is None
    assert not list(folder.glob("node-*.lock"))
    assert (folder / "runs").read_text() == "run\n"


def test_a_lock_that_was_left_behind_does_not_hold_for_ever(folder, compiler):
    compiler('echo content > "$OUT"')
    lock = folder / f"node-{node_build.key()}.lock"
    lock.touch()
    os.utime(lock, (time.time() - 3600,) * 2)
    assert node_build.load_or_start(folder) is None
    wait_for(lambda: list(folder.glob("node-*.so")))
    wait_for(lambda: not lock.exists())


def test_damaged_and_unloadable_files_are_left_alone(folder):
    key = node_build.key()
    (folder / f"node-{key}-{'0' * 16}.so").write_bytes(b"not what its name says")
    whole = folder / f"node-{key}-x.so"
    whole.write_bytes(b"not a library")
    whole.rename(folder / f"node-{key}-{build.digest(whole)}.so")
    assert node_build.load(folder) is None


def test_nothing_is_started_where_it_cannot_be_compiled(folder, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert node_build.load_or_start(folder) is None
    assert not list(folder.iterdir())
    assert "no-such-compiler" in node.compile_node()


def test_programs_that_are_no_python_are_not_called_as_if_they_were(folder, monkeypatch):
    for program in ("/opt/app/frozen", "", None):
        monkeypatch.setattr("sys.executable", program)
        assert node_build.load_or_start(folder) is None
        assert not list(folder.iterdir())
        assert "not run by a Python" in node.compile_node()


def test_a_home_that_cannot_be_written_to(folder, monkeypatch):
    (folder / "file").touch()
    assert node_build.load_or_start(folder / "file" / "cache") is None
    monkeypatch.setenv("STARTSPARSE_CACHE", str(folder / "file" / "cache"))
    assert node.compile_node() is not None


def test_python_is_what_one_may_ask_for(folder, monkeypatch):
    monkeypatch.setenv("STARTSPARSE_NODE", "python")
    node.forget()
    assert not node.has_node()
    assert not list(folder.glob("node-*"))
    monkeypatch.setenv("STARTSPARSE_NODE", "fast")
    node.forget()
    with pytest.raises(ValueError, match="STARTSPARSE_NODE must be 'auto' or 'python', not 'fast'"):
        node.has_node()


def test_the_command_says_what_there_is_and_why_not(folder, monkeypatch, capsys):
    if library.backend().name != "native":
        pytest.skip("no compiler on this machine")
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert main(["build"]) == 1
    assert "autograd node: Python, since no C++ compiler found" in capsys.readouterr().out
