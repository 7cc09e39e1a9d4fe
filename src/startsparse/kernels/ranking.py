"""The one top-k (``startsparse.selection``) by the kernels, where these are loaded anyway."""

from __future__ import annotations

import numpy as np
import torch

from startsparse.kernels import library
from startsparse.selection import rank_with


def highest(scores: np.ndarray, count: int, prefer: np.ndarray | None) -> np.ndarray | None:
    """A ``Ranking`` of ``selection``; nothing is compiled or loaded for it."""
    if library._backend is None:
        return None
    wanted = None if prefer is None else torch.from_numpy(prefer)
    taken = library._backend.highest(torch.from_numpy(scores), count, wanted, library.threads())
    return None if taken is None else taken.numpy()


rank_with(highest)
