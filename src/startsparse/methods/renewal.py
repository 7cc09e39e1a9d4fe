"""A layer's ranking, step after step: who is active is known from last time, so that only contested positions are ranked.

Scores move little in a step. Active weights below some inactive one, and inactive ones above some active one, are all
that can change places; they are few, and found in two passes over the scores.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..selection import top_k, top_k_in_rows


@dataclass(frozen=True)
class Swap:
    """What changes in a layer's mask: flat positions, int64.

    Attributes:
        arriving: become active.
        leaving: become inactive; as many, or more.
        slots: where ``leaving`` stand in the ``Standing`` they come from, if they do.
    """

    arriving: Tensor
    leaving: Tensor
    slots: Tensor | None = None

    @classmethod
    def between(cls, mask: Tensor, want: Tensor) -> Swap:
        """From one mask to another, positions ascending."""
        changed = positions((want ^ mask).reshape(-1))
        arrives = want.reshape(-1)[changed]
        return cls(changed[arrives], changed[~arrives])

    def after(self, mask: Tensor) -> Tensor:
        """The mask once it is made; ``mask`` stays as it is."""
        changed = mask.clone(memory_format=torch.contiguous_format)
        flat = changed.view(-1)
        _ = flat.index_fill_(0, self.arriving, True)
        _ = flat.index_fill_(0, self.leaving, False)
        return changed

    def __len__(self) -> int:
        return len(self.arriving) + len(self.leaving)


NOTHING = torch.empty(0, dtype=torch.int64)


def positions(flags: Tensor) -> Tensor:
    """Where a flat bool tensor is True, ascending: ``nonzero``, several times as fast where few are."""
    if flags.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(flags.numpy()))
    return flags.nonzero().squeeze(1)


class Standing:
    """The active positions of one mask on the CPU, in some order, and what of it changes under new scores.

    Args:
        mask: bool; neither empty nor full.
    """

    def __init__(self, mask: Tensor):
        self.mask, self.active = mask, np.flatnonzero(mask.numpy())
        self._settled = np.empty(mask.numel(), dtype=bool)

    def wanted(self, key: Tensor, name: str) -> Swap:
        """What leads to the mask of as many highest keys, ties to the present mask and then to the lower index.

        Args:
            key: of the mask's shape, float32 on the CPU; ``-inf`` must not be taken.
            name: of the layer, for errors.

        Raises:
            ValueError: a key is NaN, or an active one ``-inf``.

        Example:
            >>> mask, key = torch.tensor([True, True, False, False]), torch.tensor([3.0, 1.0, 2.0, 1.0])
            >>> swap = Standing(mask).wanted(key, "w")
            >>> swap.arriving, swap.leaving
            (tensor([2]), tensor([1]))
        """
        keys, settled = key.detach().contiguous().view(-1).numpy(), self._settled
        kept = keys.take(self.active)
        lowest = kept.min()
        if not lowest > -np.inf:
            return _from_all(key, self.mask, name)
        _ = np.less_equal(keys, lowest, out=settled)  # false for NaN
        _ = np.logical_or(settled, self.mask.view(-1).numpy(), out=settled)
        if settled.all():
            return Swap(NOTHING, NOTHING)
        others = np.flatnonzero(np.logical_not(settled, out=settled))
        rivals = keys.take(others)
        highest = rivals.max()
        if np.isnan(highest):
            return _from_all(key, self.mask, name)
        slots = np.flatnonzero(kept < highest)
        at = self.active.take(slots)
        order = at.argsort(kind="stable")
        slots, at = slots.take(order), at.take(order)
        contested = torch.from_numpy(np.concatenate([kept.take(slots), rivals]))
        present = torch.zeros(len(contested), dtype=torch.bool)
        present[: len(at)] = True
        taken = top_k(contested, len(at), prefer=present, what=name).numpy()
        come, go = taken[len(at) :], ~taken[: len(at)]
        return Swap(*(torch.from_numpy(found) for found in (others[come], at[go], slots[go])))

    def move(self, swap: Swap, mask: Tensor) -> None:
        """Stand as after a swap of this standing's own, which led to ``mask``."""
        assert swap.slots is not None
        self.mask = mask
        self.active[swap.slots.numpy()] = swap.arriving.numpy()


def wanted_in_rows(keys: Tensor, kept: Tensor, number: int, name: str) -> Swap:
    """What leads to the mask of each row's ``number`` highest keys, ties to the present mask and then to the lower index.

    Args:
        keys: (rows, columns), on the CPU; ``-inf`` must not be taken.
        kept: bool, the present mask; ``number`` in each row.
        number: active positions of a row.
        name: of the layer, for errors.

    Raises:
        ValueError: a key is NaN, or a row has fewer than ``number`` that may be taken.

    Example:
        >>> kept, keys = torch.tensor([[True, False], [True, False]]), torch.tensor([[1.0, 0.5], [1.0, 2.0]])
        >>> swap = wanted_in_rows(keys, kept, 1, "w")
        >>> swap.arriving, swap.leaving
        (tensor([3]), tensor([2]))
    """
    table, mask = keys.numpy(), kept.numpy()
    lowest, highest = _edges(table, mask)
    rows = np.flatnonzero(~(lowest >= highest) | (lowest == -np.inf))  # also those with NaN
    if not len(rows):
        return Swap(NOTHING, NOTHING)
    contested = torch.from_numpy(rows)
    best = top_k_in_rows(keys[contested], number, prefer=kept[contested], what=name)
    local, size = Swap.between(kept[contested], best), kept.shape[1]
    return Swap(*(contested[at // size] * size + at % size for at in (local.arriving, local.leaving)))


def _edges(table: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The lowest active and the highest inactive value of each row; a loop over columns where rows are short."""
    low, high = np.where(mask, table, np.float32(np.inf)), np.where(mask, np.float32(-np.inf), table)
    if table.shape[1] > 16:
        return low.min(1), high.max(1)
    lowest, highest = low[:, 0].copy(), high[:, 0].copy()
    for column in range(1, table.shape[1]):
        _ = np.minimum(lowest, low[:, column], out=lowest)
        _ = np.maximum(highest, high[:, column], out=highest)
    return lowest, highest


def _from_all(key: Tensor, mask: Tensor, name: str) -> Swap:
    """By ranking everything, which says what is wrong with keys that cannot be ranked."""
    return Swap.between(mask, top_k(key, int(mask.count_nonzero()), prefer=mask, what=name))
