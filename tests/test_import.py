"""What importing the library costs, and what its public names say of themselves."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import startsparse as ss

HEAVY = [
    "pydantic",
    "yaml",
    "rich",
    "pyarrow",
    "PIL",
    "sklearn",
    "scipy",
    "matplotlib",
    "datasets",
    "accelerate",
]


def test_import_loads_only_what_it_needs():
    script = (
        "import sys, torch\n"
        "before = set(sys.modules)\n"
        "import startsparse\n"
        f"heavy = [name for name in {HEAVY!r} if name in sys.modules and name not in before]\n"
        "assert not heavy, heavy\n"
        "assert not torch.cuda.is_initialized()\n"
        "rooms = [m for m in sys.modules if m.startswith(('startsparse.cli', 'startsparse.training'))]\n"
        "assert not rooms, rooms\n"
    )
    command = [sys.executable, "-W", "error", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def public() -> dict[str, object]:
    return {
        name: value
        for name, value in vars(ss).items()
        if not name.startswith("_") and (inspect.isclass(value) or inspect.isfunction(value))
    }


def test_public_names_are_found():
    assert {"attach", "plan", "Sparsifier", "RigL", "RandomSource"} <= set(public())


# These are made by others' examples: what makes them shows them.
SHOWN_ELSEWHERE = {
    "Sparsifier": "attach",
    "Report": "attach",
    "Plan": "plan",
    "load": "save",
    "Search": "search",
}


@pytest.mark.parametrize("name", public())
def test_public_names_have_an_example(name):
    text = inspect.getdoc(public()[SHOWN_ELSEWHERE.get(name, name)]) or ""
    assert ">>>" in text, f"{name} has no example in its docstring"
    assert inspect.getdoc(public()[name])


@pytest.mark.parametrize("name", public())
def test_public_members_have_docstrings(name):
    kind = public()[name]
    if inspect.isclass(kind):
        members = {
            n: m
            for n, m in vars(kind).items()
            if not n.startswith("_") and (inspect.isfunction(m) or isinstance(m, property))
        }
        undocumented = [n for n in members if not inspect.getdoc(getattr(kind, n))]
        assert undocumented == []
