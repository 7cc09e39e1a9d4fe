"""Masks searched over weights that never change: jackpots, edge-popup and their kin; ``ss.search`` is the door."""

from .batch_norm import reestimate_batch_norm as reestimate_batch_norm
from .begin import search as search
from .engine import Search as Search

__all__ = ["Search", "reestimate_batch_norm", "search"]
