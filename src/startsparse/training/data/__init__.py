"""Data sets: found, decoded once into bytes, kept on the device, split by seed."""

from startsparse.training.data.batches import AUGMENTS, Batches, crop_flip, in_order, random_crop, random_flip
from startsparse.training.data.errors import DamagedData, MissingData
from startsparse.training.data.registry import TABLE, load, names
from startsparse.training.data.splits import Dataset, Split, hold_out, num_held_out

__all__ = [
    "AUGMENTS",
    "TABLE",
    "Batches",
    "DamagedData",
    "Dataset",
    "MissingData",
    "Split",
    "crop_flip",
    "hold_out",
    "in_order",
    "load",
    "names",
    "num_held_out",
    "random_crop",
    "random_flip",
]
