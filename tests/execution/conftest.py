"""Fixtures of sparse execution's tests."""

from __future__ import annotations

import pytest

from startsparse.execution import sequence


@pytest.fixture
def of_few_items_too(monkeypatch):
    """Linear layers run together also where calls of their own, for few items, would cost less."""
    monkeypatch.setattr(sequence, "_FEW_TRAINED", 0)
    monkeypatch.setattr(sequence, "_FEW", 0)
