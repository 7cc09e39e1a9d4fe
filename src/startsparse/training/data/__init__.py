"""Data sets: found, decoded once into bytes, kept on the device, split by seed or by position."""

from startsparse.training.data.batches import (
    AUGMENTS,
    Batches,
    crop_flip,
    in_order,
    random_crop,
    random_flip,
    resized_crop_flip,
)
from startsparse.training.data.entry import Entry
from startsparse.training.data.errors import DamagedData, MissingData
from startsparse.training.data.options import Options
from startsparse.training.data.registry import KINDS, TABLE, describe, load, missing, names
from startsparse.training.data.splits import Dataset, Split, hold_out, num_held_out
from startsparse.training.data.text import TextSplit, vocabulary

__all__ = [
    "AUGMENTS",
    "KINDS",
    "TABLE",
    "Batches",
    "DamagedData",
    "Dataset",
    "Entry",
    "MissingData",
    "Options",
    "Split",
    "TextSplit",
    "crop_flip",
    "describe",
    "hold_out",
    "in_order",
    "load",
    "missing",
    "names",
    "num_held_out",
    "random_crop",
    "random_flip",
    "resized_crop_flip",
    "vocabulary",
]
