"""Data sets that come with scikit-learn: images, a table, and a graph made of the images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from startsparse.training.data.splits import Split
from startsparse.training.data.table import TEST_SHARE
from startsparse.training.names import require
from startsparse.training.seeds import derive

NEIGHBOURS = 8
LABELLED = 40  # nodes of each class whose labels may be seen


def read_digits(_: Path) -> tuple[Split, Split]:
    """1,797 digits of 8x8; the last 360, by other writers than most of the rest, are the test part."""
    bunch = require("sklearn.datasets", "the data set digits").load_digits()
    inputs = torch.from_numpy(bunch.images).mul(15).to(torch.uint8)[:, None]
    labels = torch.from_numpy(bunch.target).long()
    return Split(inputs[:-360], labels[:-360]), Split(inputs[-360:], labels[-360:])


def read_breast_cancer(_: Path) -> tuple[Split, Split]:
    """569 rows of 30 measurements; a fifth, the same rows for every seed, is the test part."""
    bunch = require("sklearn.datasets", "the data set breast-cancer").load_breast_cancer()
    whole = Split(torch.from_numpy(bunch.data).float(), torch.from_numpy(bunch.target).long())
    order = _order(len(whole))
    held = round(TEST_SHARE * len(whole))
    return whole.take(order[held:].sort().values), whole.take(order[:held].sort().values)


def read_digits_graph(_: Path) -> tuple[Split, Split]:
    """Nodes of a graph over the 1,797 digits: each with the pixels of its neighbours, and of their neighbours.

    An edge goes from each digit to the eight nearest in pixel distance (ties to the lower index), and to itself. The graph
    is made of the pixels of all digits, labels play no part in it. 40 nodes of each class, the same ones for every seed,
    are there to train and validate on; the other 1,397 are the test part.

    Returns:
        (train, test), inputs uint8 (N, 9, 9, 64): the pixels of neighbour b of neighbour a, each node's first neighbour
        being itself.
    """
    bunch = require("sklearn.datasets", "the data set digits-graph").load_digits()
    near = torch.from_numpy(neighbours(bunch.data, NEIGHBOURS))
    pixels = torch.from_numpy(bunch.data).mul(15).to(torch.uint8)
    labels = torch.from_numpy(bunch.target).long()
    order = _order(len(labels))
    seen = torch.cat([order[labels[order] == digit][:LABELLED] for digit in range(10)]).sort().values
    hidden = torch.ones(len(labels), dtype=torch.bool).index_fill_(0, seen, False).nonzero().squeeze(1)

    def part(nodes: torch.Tensor) -> Split:
        return Split(pixels[near[near[nodes]]], labels[nodes])

    return part(seen), part(hidden)


def neighbours(points: np.ndarray, count: int) -> np.ndarray:
    """Each point itself and its ``count`` nearest, (N, 1 + count), nearest first; ties to the lower index.

    Args:
        points: (N, F), of whole numbers, so that distances are exact.

    Example:
        >>> neighbours(np.array([[0.0], [3.0], [4.0]]), 1)
        array([[0, 1],
               [1, 2],
               [2, 1]])
    """
    lengths = (points**2).sum(axis=1)
    distances = lengths[:, None] + lengths[None, :] - 2 * points @ points.T
    np.fill_diagonal(distances, -1)
    return distances.argsort(axis=1, kind="stable")[:, : 1 + count]


def _order(count: int) -> torch.Tensor:
    return torch.from_numpy(np.random.Generator(np.random.PCG64(derive(0, "test"))).permutation(count))
