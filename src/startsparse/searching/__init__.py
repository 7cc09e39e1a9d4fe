"""Masks searched over weights that never change: jackpots, edge-popup and their kin; ``ss.search`` is the door."""

from .backbone import Backbone as Backbone
from .batch_norm import reestimate_batch_norm as reestimate_batch_norm
from .begin import search as search
from .distillation import Distillation as Distillation
from .distillation import distillation_loss as distillation_loss
from .engine import Search as Search
from .overlap import Overlap as Overlap
from .overlap import overlap as overlap
from .overlap import plot_overlaps as plot_overlaps

__all__ = [
    "Backbone",
    "Distillation",
    "Overlap",
    "Search",
    "distillation_loss",
    "overlap",
    "plot_overlaps",
    "reestimate_batch_norm",
    "search",
]
