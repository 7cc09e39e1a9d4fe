"""What the user takes away: the compact file of a sparse network (``docs/formats/compact_file.md``)."""

from .errors import FormatError
from .files import SparseFile, load, save

__all__ = ["FormatError", "SparseFile", "load", "save"]
