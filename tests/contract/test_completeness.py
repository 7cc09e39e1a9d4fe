"""Every registered method has all that a method needs: a row, a hand-made table, a card, a citation."""

import inspect
import re
from pathlib import Path

import pytest

import startsparse as ss

from .settings import SETTINGS

ROOT = Path(__file__).parents[2]
METHODS = ss.methods.names("attach")


def test_rows_and_registry_are_the_same():
    assert sorted(SETTINGS) == METHODS
    assert len(METHODS) >= 6


def test_the_registry_is_open_by_name_alone():
    for name in ss.methods.names():
        assert ss.methods.get(name).name == name
    assert set(ss.methods.names()) == {n for kind in ss.methods.KINDS for n in ss.methods.names(kind)}


@pytest.mark.parametrize("name", METHODS)
def test_hand_made_table(name):
    """Some file of tests/methods/ has a table worked out by a person: ``test_<name>_by_hand...``."""
    text = "".join(path.read_text() for path in sorted((ROOT / "tests" / "methods").glob("test_*.py")))
    assert re.search(rf"def test_{name}_by_hand", text), f"no hand-made table of {name} in tests/methods"


@pytest.mark.parametrize("name", METHODS)
def test_card(name):
    card = ROOT / "docs" / "methods" / f"{name}.md"
    assert card.is_file(), f"{name} has no card: docs/methods/{name}.md"
    assert len(card.read_text().splitlines()) >= 10


@pytest.mark.parametrize("name", METHODS)
def test_citation(name):
    method = ss.methods.get(name)
    text = inspect.getdoc(method)
    assert "References:" in text
    assert re.search(r"https://(arxiv\.org|doi\.org|openreview\.net)/", text)
    assert re.search(r"\d{4}", method.paper)
    assert ">>>" in text
