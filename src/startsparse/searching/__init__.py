"""Masks searched over weights that never change: jackpots, edge-popup and their kin; ``ss.search`` is the door."""

from .begin import search as search
from .engine import Search as Search

__all__ = ["Search", "search"]
