"""Scores and a count in, exactly that many positions out. The only top-k in the house.

Selection is exact and deterministic whatever the scores: ties go to the preferred positions first (the current mask,
where a method wants no needless change), then to the lower index, then, across layers, to the earlier layer.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from .layouts import Layout

_REMEDY = "lower the density or enlarge the source"
_JOINED = 1 << 22  # scores of all layers that are joined into one array
_MANY = 1 << 14  # scores that are worth leaving to `_ranking`

Ranking = Callable[[np.ndarray, int, np.ndarray | None], "np.ndarray | None"]
"""Which of flat float32 scores are the highest, so many of them (at least one), as bool; preferred ones come first among
equal ones, then those of lower index. None: it cannot say."""

_ranking: Ranking | None = None


def rank_with(ranking: Ranking | None) -> None:
    """Ask this first where scores are many; what NumPy says is the same, and takes longer."""
    global _ranking
    _ranking = ranking


def top_k(scores: Tensor, count: int, *, prefer: Tensor | None = None, what: str = "scores") -> Tensor:
    """The ``count`` highest scores as a bool tensor of the scores' shape.

    Args:
        scores: any shape, any float or integer dtype; ``-inf`` marks positions that must not be taken.
        count: how many to take, 0 .. number of positions that are not ``-inf``.
        prefer: bool tensor of the same shape; among equal scores these come first.
        what: what the scores belong to, for the error.

    Raises:
        ValueError: a score is NaN, or fewer positions than ``count`` may be taken.

    Example:
        >>> top_k(torch.tensor([1.0, 3.0, 3.0, 3.0]), 2)
        tensor([False,  True,  True, False])
    """
    if scores.device.type == "cpu" and scores.dtype in (torch.float32, torch.float64):
        wanted = None if prefer is None else prefer.reshape(-1).numpy()
        taken = _top_k(scores.detach().reshape(-1).numpy(), count, wanted, {what: scores})
        return torch.from_numpy(taken).view(scores.shape)
    return top_k_across({what: scores}, count, prefer=None if prefer is None else {what: prefer})[what]


def _top_k(
    values: np.ndarray, count: int, prefer: np.ndarray | None, scores: Mapping[str, Tensor]
) -> np.ndarray:
    """``top_k`` of flat values in NumPy, whose comparisons and partitions are several times as fast as torch's.

    The values are those of ``scores``, layer after layer, whose names errors need.
    """
    if _ranking is not None and values.dtype == np.float32 and _MANY <= len(values) >= count > 0:
        taken = _ranking(np.ascontiguousarray(values), count, prefer)
        if taken is not None:
            return taken
    if np.isnan(values).any() or not 0 <= count <= len(values):
        _check(scores, count)
    if count == 0:
        return np.zeros(len(values), dtype=bool)
    threshold = np.partition(values, len(values) - count)[len(values) - count]
    if threshold == -np.inf:
        _check(scores, count)
    taken = values > threshold
    tied = np.flatnonzero(values == threshold)
    missing = count - int(np.count_nonzero(taken))
    if prefer is not None and missing < len(tied):
        tied = tied[np.argsort(~prefer[tied], kind="stable")]
    taken[tied[:missing]] = True
    return taken


def top_k_across(
    scores: Mapping[str, Tensor], count: int, *, prefer: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """The ``count`` highest scores over all layers together, as bool tensors of the scores' shapes.

    Layers that are small are joined. Of large ones candidates are merged; no tensor of all scores is made when ``count``
    is small. Arguments and errors as ``top_k``.

    Example:
        >>> top_k_across({"a": torch.tensor([1.0, 5.0]), "b": torch.tensor([3.0, 2.0])}, 2)
        {'a': tensor([False,  True]), 'b': tensor([ True, False])}
    """
    if _can_be_joined(scores):
        return _top_k_joined(scores, count, prefer)
    _check(scores, count)
    if count == 0:
        return {
            name: torch.zeros(score.shape, dtype=torch.bool, device=score.device)
            for name, score in scores.items()
        }
    scores = _of_one_type(scores)
    flat = [score.reshape(-1) for score in scores.values()]
    threshold = _kth_highest([_candidates(part, count) for part in flat] if len(flat) > 1 else flat, count)
    taken = {name: (score > threshold.to(score.device)).contiguous() for name, score in scores.items()}
    missing = count - sum(int(mask.count_nonzero()) for mask in taken.values())
    for wanted in (True, False) if prefer is not None else (None,):
        for name, score in scores.items():
            tied = score == threshold.to(score.device)
            if wanted is not None:
                tied &= prefer[name] if wanted else ~prefer[name]  # type: ignore[index]
            chosen = tied.reshape(-1).nonzero().squeeze(1)[:missing]
            taken[name].view(-1)[chosen] = True
            missing -= len(chosen)
    return taken


def _can_be_joined(scores: Mapping[str, Tensor]) -> bool:
    """Whether they are few, on the CPU, and of one type that NumPy ranks."""
    kinds = {(score.device.type, score.dtype) for score in scores.values()}
    few = sum(score.numel() for score in scores.values()) <= _JOINED
    return few and len(kinds) == 1 and kinds <= {("cpu", torch.float32), ("cpu", torch.float64)}


def _top_k_joined(
    scores: Mapping[str, Tensor], count: int, prefer: Mapping[str, Tensor] | None
) -> dict[str, Tensor]:
    values = np.concatenate([score.detach().reshape(-1).numpy() for score in scores.values()])
    wanted = None if prefer is None else np.concatenate([prefer[n].reshape(-1).numpy() for n in scores])
    ends = np.cumsum([score.numel() for score in scores.values()])
    parts = np.split(_top_k(values, count, wanted, scores), ends[:-1])
    return {
        name: torch.from_numpy(part.copy()).view(score.shape)
        for (name, score), part in zip(scores.items(), parts, strict=True)
    }


def select(scores: Tensor, count: int, layout: Layout, *, what: str = "scores") -> Tensor:
    """The legal mask of a layout that keeps the highest scores, of the scores' shape.

    Whole groups are ranked by the sum of their scores, groups with a quota keep their own highest. The number of live
    positions is the multiple of the layout's quantum nearest to ``count``.

    Raises:
        ValueError: as ``top_k``, or the shape does not divide into the layout's groups.

    Example:
        >>> select(torch.tensor([[1.0, 5.0, 2.0, 3.0]]), 2, Layout("n:m", (2, 4)))
        tensor([[False,  True, False,  True]])
    """
    groups = layout.arrange(tuple(scores.shape), what).to(scores.device)
    units = layout.units(tuple(scores.shape), count, what)
    grouped = scores.reshape(-1)[groups]
    mask = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
    if layout.whole:
        mask[groups[top_k(grouped.sum(1), units, what=what)]] = True
        return mask.view(scores.shape)
    mask[groups[top_k_in_rows(grouped, units, what=what)]] = True
    return mask.view(scores.shape)


def top_k_in_rows(
    scores: Tensor, count: int, *, prefer: Tensor | None = None, what: str = "scores"
) -> Tensor:
    """The ``count`` highest scores of each row, as a bool tensor of the scores' shape (rows, columns).

    Arguments and errors as ``top_k``; every row must hold ``count`` positions that may be taken.

    Example:
        >>> top_k_in_rows(torch.tensor([[1.0, 5.0, 5.0], [2.0, 0.0, 1.0]]), 1)
        tensor([[False,  True, False],
                [ True, False, False]])
    """
    _check({what: scores}, count * len(scores))
    if scores.is_floating_point() and len(scores):
        room = int((~scores.isneginf()).sum(1).min())
        if room < count:
            raise ValueError(
                f"{what}: cannot take {count} of the {room} positions that one of its groups allows: {_REMEDY}"
            )
    if scores.device.type == "cpu" and scores.dtype in (torch.float32, torch.float64) and count > 0:
        return _top_k_in_rows(scores.detach(), count, prefer)
    return _sorted_rows(scores, count, prefer)


def _top_k_in_rows(scores: Tensor, count: int, prefer: Tensor | None) -> Tensor:
    """By each row's threshold; rows with more ties than places are sorted."""
    values = scores.numpy()
    if not count < values.shape[1]:
        return torch.ones_like(scores, dtype=torch.bool)
    place = values.shape[1] - count
    threshold = np.partition(values, place, axis=1)[:, place : place + 1]
    taken = values >= threshold
    crowded = np.flatnonzero(np.count_nonzero(taken, axis=1) > count)
    mask = torch.from_numpy(taken)
    if len(crowded):
        rows = torch.from_numpy(crowded)
        mask[rows] = _sorted_rows(scores[rows], count, None if prefer is None else prefer[rows])
    return mask


def _sorted_rows(scores: Tensor, count: int, prefer: Tensor | None) -> Tensor:
    order = None
    if prefer is not None:
        order = prefer.to(torch.uint8).sort(dim=1, descending=True, stable=True).indices
        scores = scores.gather(1, order)
    best = scores.sort(dim=1, descending=True, stable=True).indices[:, :count]
    best = best if order is None else order.gather(1, best)
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, best, True)


def top_k_in_groups(scores: Tensor, groups: Tensor, counts: Tensor, *, what: str = "scores") -> Tensor:
    """The highest scores of each group, a number for each, as a bool tensor; ties to the lower index.

    Args:
        scores: (n,).
        groups: the group of each score, int64 (n,).
        counts: how many each group gives, int64 (number of groups,); at most as many as it has.
        what: what the scores belong to, for the error.

    Raises:
        ValueError: a score is NaN, or a group is smaller than its count.

    Example:
        >>> top_k_in_groups(torch.tensor([1.0, 5.0, 5.0, 2.0]), torch.tensor([0, 0, 0, 1]), torch.tensor([1, 1]))
        tensor([False,  True, False,  True])
    """
    _check({what: scores}, int(counts.sum()))
    sizes = torch.bincount(groups, minlength=len(counts))
    if bool((sizes < counts).any()):
        short = int((sizes < counts).nonzero()[0])
        raise ValueError(
            f"{what}: cannot take {int(counts[short])} of the {int(sizes[short])} positions of group {short}: {_REMEDY}"
        )
    order = scores.sort(descending=True, stable=True).indices
    order = order[groups[order].sort(stable=True).indices]
    place = torch.arange(len(scores), device=scores.device) - (sizes.cumsum(0) - sizes)[groups[order]]
    taken = torch.zeros(len(scores), dtype=torch.bool, device=scores.device)
    taken[order] = place < counts[groups[order]]
    return taken


def _check(scores: Mapping[str, Tensor], count: int) -> None:
    available = 0
    for name, score in scores.items():
        if score.is_floating_point():
            if bool(score.isnan().any()):
                raise ValueError(
                    f"{name}: {int(score.isnan().sum())} of {score.numel()} scores are NaN, cannot rank them"
                )
            available += score.numel() - int(score.isneginf().count_nonzero())
        else:
            available += score.numel()
    if not 0 <= count <= available:
        raise ValueError(f"cannot take {count} of {available} positions ({', '.join(scores)}): {_REMEDY}")


def _of_one_type(scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Scores that can be compared exactly: a threshold must not be rounded to another layer's type."""
    types = {score.dtype for score in scores.values()}
    common = functools.reduce(torch.promote_types, types)
    return {name: score.to(common) for name, score in scores.items()}


def _candidates(flat: Tensor, count: int) -> Tensor:
    """The values among which a layer's share of the highest ``count`` must be."""
    return flat if count >= flat.numel() // 2 else flat[flat >= _kth_highest([flat], count)]


def _kth_highest(parts: list[Tensor], count: int) -> Tensor:
    values = parts[0] if len(parts) == 1 else torch.cat([part.to(parts[0].device) for part in parts])
    place = values.numel() - count
    if values.device.type == "cpu" and values.dtype in (torch.float32, torch.float64):
        # vectorised, unlike torch's kthvalue
        return torch.from_numpy(np.partition(values.detach().numpy(), place)[place : place + 1])[0]
    return values.kthvalue(place + 1).values
