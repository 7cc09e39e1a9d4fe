"""Cannistraci-Hebb training: growth by the topology alone, where short paths already run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..criteria import magnitude
from ..draw import Permutation, key, words
from ..selection import top_k
from .base import Change
from .drop_grow import DropGrow, moved
from .view import LayerView

REMOVALS = ("magnitude", "relative")


@dataclass(frozen=True)
class CHT(DropGrow):
    """Cannistraci-Hebb training: drop the smallest weights of each layer, grow the links that most paths of length
    three join, counting for more where the nodes between have few links elsewhere (CH3-L3). No gradient is needed.

    Args:
        removal: "magnitude" or "relative" (abs(weight) over the sums of its row and of its column).
        soft: draw the links to grow in proportion to their scores (CHTs), instead of the highest ones (CHT).

    References:
        Zhang et al., Brain network science modelling of sparse neural networks enables Transformers and LLMs to
        perform as fully connected, 2025, https://arxiv.org/abs/2501.19107

    Fidelity:
        The link score of CHT and the two removals. Not built: the node-based score that the authors' CHTs uses for
        speed, the removal of chains (nodes with links on one side only), the early stop, the adaptive share, soft
        removal, a falling density, and first topologies from network science: masks start at random. Made for linear
        layers; in a convolution every tap of an input counts as an input of its own.
        Links of equal score, such as those that no path joins, are grown in drawn order.

    Example:
        >>> CHT(density=0.01).grows_by_gradient
        False
    """

    drop_schedule: str = "constant"
    update_end: int | float = 1.0
    removal: str = "magnitude"
    soft: bool = False

    name: ClassVar[str] = "cht"
    paper: ClassVar[str] = "Zhang et al. 2025"
    summary: ClassVar[str] = "drop by magnitude, grow links that short paths already join"

    def __post_init__(self):
        super().__post_init__()
        self._one_of("removal", REMOVALS)
        if not isinstance(self.soft, bool):
            raise ValueError(f"cht: soft must be True or False, got {self.soft!r}")

    def keep(self, view: LayerView, count: int) -> Tensor:
        score = magnitude(view.active_weights())
        if self.removal == "relative":
            rows, columns = _ends(view, view.active_positions())
            score = score / _sums(score, rows) + score / _sums(score, columns)
            score = score.nan_to_num(0.0)
        return top_k(score, count, what=view.name)

    def exchange(self, view: LayerView, num_drop: int, num_grow: int, step: int) -> Change:
        active = view.active_positions()
        keep = self.keep(view, len(active) - num_drop)
        dropped = active[~keep]
        returning = dropped[:0] if self.exclude_dropped else dropped
        free = view.grow_at_random(view.num_growable(returning), returning, self.seed, step)
        rows, columns = _ends(view, active[keep])
        live = torch.zeros(view.shape[0], math.prod(view.shape[1:]), device=active.device)
        live[rows, columns] = 1
        score = ch3_l3(live).view(-1)[free]
        return moved(view, dropped, free[self._chosen(view, free, score, num_grow, step)])

    def _chosen(self, view: LayerView, free: Tensor, score: Tensor, count: int, step: int) -> Tensor:
        """Indices of the ``count`` positions to grow, rising."""
        if self.soft:  # the highest of log(score) + Gumbel noise are a draw in proportion to the scores
            raw = words(key(f"link:{step}", self.seed, view.name), 0, len(free))
            uniform = (torch.from_numpy((raw >> 11).astype("int64")).double() + 0.5) / 2**53
            noise = -(-uniform.log()).log()
            score = score.double().clamp_min(1e-30).log() + noise.to(score.device)
        order = Permutation(math.prod(view.shape), f"tie:{step}", self.seed, view.name)
        drawn = torch.from_numpy(order.ranks(free.cpu().numpy())).argsort().to(free.device)
        return drawn[top_k(score[drawn], count, what=view.name)].sort().values


def ch3_l3(live: Tensor) -> Tensor:
    """CH3-L3 score of every pair of nodes of a bipartite graph, float32 (outputs, inputs).

    The sum over paths of length three, input u - output a - input b - output v, of 1 / sqrt((1 + e_a)(1 + e_b)), where
    e counts a node's links that lead neither to the pair nor to another node of its paths. Means nothing where a link
    is already.

    Args:
        live: 1.0 where a link is, 0.0 elsewhere, (outputs, inputs).

    Example:
        >>> ch3_l3(torch.tensor([[1.0, 1.0], [0.0, 1.0]]))[1, 0]
        tensor(1.)
    """
    outputs, inputs = live.sum(1), live.sum(0)
    between_outputs = (outputs[:, None] - live @ live.T).clamp_min(1).rsqrt()  # (a, v)
    between_inputs = (inputs[:, None] - live.T @ live).clamp_min(1).rsqrt()  # (b, u)
    score = torch.zeros_like(live)
    for v in range(len(live)):
        near = live[v].nonzero().squeeze(1)
        if not len(near):
            continue
        joined = live[:, near]
        on_path = joined.any(1).nonzero().squeeze(1)
        paths = joined[on_path] @ between_inputs[near]
        score[v] = (live[on_path] * between_outputs[on_path, v, None] * paths).sum(0)
    return score


def _ends(view: LayerView, positions: Tensor) -> tuple[Tensor, Tensor]:
    width = math.prod(view.shape[1:])
    return positions // width, positions % width


def _sums(score: Tensor, groups: Tensor) -> Tensor:
    sums = torch.zeros(int(groups.max()) + 1 if len(groups) else 0, dtype=score.dtype, device=score.device)
    return sums.index_add_(0, groups, score)[groups]
