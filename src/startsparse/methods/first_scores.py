"""How a search begins: criteria that give the first mask, and laws of first scores."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import criteria
from ..draw import Permutation
from .search import Scored, uniform

MEASURED = ("gradient", "hessian_gradient", "activation")


@dataclass(frozen=True)
class Criterion:
    """What ranks weights for the first mask, and what has to be measured for it.

    Args:
        score: (weight, signal of its shape) -> score, higher = keep.
        signal: one of ``MEASURED``, or None where the weights are enough.
    """

    score: Callable[[Tensor, Tensor], Tensor]
    signal: str | None = None


def taylor(weight: Tensor, gradient: Tensor) -> Tensor:
    """(weight * gradient)**2. Molchanov et al. 2019, first order, https://arxiv.org/abs/1906.10771"""
    return (weight * gradient).square()


def grasp(weight: Tensor, hessian_gradient: Tensor) -> Tensor:
    """weight * (Hessian @ gradient): keep the highest, whose removal would cost the gradient's norm most.

    Wang et al., Picking Winning Tickets Before Training by Preserving Gradient Flow, 2020, section 4,
    https://arxiv.org/abs/2002.07376
    """
    return weight * hessian_gradient


def wanda(weight: Tensor, activation: Tensor) -> Tensor:
    """abs(weight) * norm of its input. Sun et al. 2024, section 3, https://arxiv.org/abs/2306.11695"""
    return weight.abs() * activation


def ria(weight: Tensor, activation: Tensor) -> Tensor:
    """Relative importance times the input's norm to the power 1/2.

    Zhang et al., Plug-and-Play: an efficient post-training pruning method for large language models, ICLR 2024. A
    convolution counts as the matrix (out, in * kernel).
    """
    matrix = weight.abs().reshape(weight.shape[0], -1)
    share = matrix / matrix.sum(0, keepdim=True).clamp_min(1e-12)
    share = share + matrix / matrix.sum(1, keepdim=True).clamp_min(1e-12)
    return share.reshape(weight.shape) * activation.sqrt()


CRITERIA: dict[str, Criterion] = {
    "magnitude": Criterion(lambda weight, _: criteria.magnitude(weight)),
    "taylor": Criterion(taylor, "gradient"),
    "snip": Criterion(criteria.saliency, "gradient"),
    "grasp": Criterion(grasp, "hessian_gradient"),
    "wanda": Criterion(wanda, "activation"),
    "ria": Criterion(ria, "activation"),
}


def needs(signal: str | None) -> tuple[str, ...]:
    """What ``ss.search`` must be given for a signal to be measured."""
    return () if signal is None else ("data",) if signal == "activation" else ("data", "loss_fn")


def random_order(layer: Scored, seed: int) -> Tensor:
    """A random ranking of a layer's positions, of the weight's shape, with words of its own."""
    size = layer.weight.numel()
    ranks = Permutation(size, "search", seed, layer.name).ranks(torch.arange(size).numpy())
    order = torch.from_numpy(size - ranks).double()
    return order.view(layer.shape).to(layer.weight.device)


def proportional(layer: Scored) -> Tensor:
    """HYDRA's first scores: ``sqrt(6 / fan_in) * weight / max(abs(weight))``.

    Sehwag et al., HYDRA, NeurIPS 2020, section 3, https://arxiv.org/abs/2002.10509
    """
    weight = layer.weight.float()
    return math.sqrt(6 / math.prod(layer.shape[1:])) * weight / weight.abs().max().clamp_min(1e-30)


def neutral(layer: Scored, shape: tuple[int, ...], seed: int) -> Tensor:
    """Scores that know nothing of the weights: U(-b, b) with b = 1 / sqrt(fan_in), edge-popup's law."""
    bound = 1 / math.sqrt(math.prod(layer.shape[1:]))
    drawn = (2 * uniform(shape, seed, "scores", layer.name) - 1) * bound
    return drawn.float().to(layer.weight.device)
