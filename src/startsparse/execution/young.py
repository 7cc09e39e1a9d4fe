"""Adam's cold start, removed: a grown weight goes through the bias correction of its own age, not of its tensor's.

Adam counts steps for a whole tensor. A weight that grows at step t with fresh moments is corrected as if they had been
averaged for t steps: with betas (0.9, 0.999) its first move is up to (1 - 0.9) / sqrt(1 - 0.999) = 3.2 learning rates
(2.5 at step 1000), where that of a weight of step 0 is one. Here the moves of young weights are scaled to what Adam
would have made of them had it counted from their birth.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, optim
from torch.optim import Optimizer

from ..methods import Change
from .flat import read, write
from .interface import Site

POSITIONS, AGES = YOUNG = (
    "young",
    "ages",
)  # memories of grown weights: positions, rising, and steps they made
CORRECTED = (optim.Adam, optim.AdamW)
UNCORRECTED = (optim.SGD, optim.RMSprop, optim.Adagrad, optim.Adadelta, optim.Rprop, optim.ASGD)
_LEFT = 1e-3  # a weight is young while its own bias corrections differ from one by more


def check(optimizers: Iterable[Optimizer]) -> None:
    """Refuse optimizers whose bias correction is not known.

    Raises:
        ValueError: names the optimizer and those that can be used.
    """
    for optimizer in optimizers:
        if type(optimizer) not in CORRECTED + UNCORRECTED:
            known = ", ".join(kind.__name__ for kind in CORRECTED + UNCORRECTED)
            raise ValueError(
                f"grown_state='warmup' must know how an optimizer corrects young averages, and "
                f"{type(optimizer).__name__} is not one of {known}: use grown_state='reset' or 'mean'"
            )


def born(site: Site, change: Change) -> None:
    """Note the weights that grew, and forget those that went."""
    none = change.grown[:0]
    young, ages = site.memory.get(POSITIONS, none), site.memory.get(AGES, none)
    stays = ~torch.isin(young, change.dropped.to(young.device), assume_unique=True)
    positions = torch.cat([young[stays], change.grown.to(young.device)])
    order = positions.argsort()
    site.memory[POSITIONS] = positions[order]
    site.memory[AGES] = torch.cat([ages[stays], torch.zeros_like(change.grown).to(ages.device)])[order]


@torch.no_grad()
def before_step(sites: Iterable[Site], optimizer: Optimizer) -> dict[str, Tensor]:
    """Where the young weights of an optimizer are before it steps, by layer."""
    if not isinstance(optimizer, CORRECTED):
        return {}
    return {
        site.name: read(site.parameter.detach(), site.index_of(site.memory[POSITIONS]))
        for site, _ in _held(sites, optimizer)
    }


@torch.no_grad()
def after_step(sites: Iterable[Site], optimizer: Optimizer, before: dict[str, Tensor]) -> None:
    """Scale the moves that young weights have made, and let them be a step older."""
    for site, group in _held(sites, optimizer):
        state = optimizer.state.get(site.parameter, {})
        if site.name not in before or "step" not in state or site.parameter.grad is None:
            continue  # it made no step
        ages = site.memory[AGES] + 1
        beta1, beta2 = map(float, group["betas"])
        scale = factor(ages, int(state["step"]), beta1, beta2)
        weight, index = site.parameter.detach(), site.index_of(site.memory[POSITIONS])
        moved = read(weight, index) - before[site.name]
        write(weight, index, before[site.name] + moved * scale.to(weight))
        still = torch.maximum(beta1 ** ages.double(), beta2 ** ages.double()) > _LEFT
        site.memory[POSITIONS], site.memory[AGES] = site.memory[POSITIONS][still], ages[still]


def factor(ages: Tensor, step: int, beta1: float, beta2: float) -> Tensor:
    """What Adam's move is to be multiplied with, float64.

    Args:
        ages: steps that a weight has made since it grew, this one included.
        step: steps that Adam has counted, this one included.
        beta1, beta2: of Adam.

    Example:
        >>> [round(1 / value, 2) for value in factor(torch.tensor([1, 2, 1000]), 1000, 0.9, 0.999).tolist()]
        [2.51, 3.38, 1.0]
    """
    age = ages.double()
    first = (1 - beta1**step) / (1 - beta1**age)
    second = (1 - beta2**age) / (1 - beta2**step)
    return first * second.sqrt()


def _held(sites: Iterable[Site], optimizer: Optimizer) -> Iterable[tuple[Site, dict]]:
    """The sites an optimizer updates that have young weights, with their parameter group."""
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    for site in sites:
        if id(site.parameter) in groups and len(site.memory.get(POSITIONS, ())):
            yield site, groups[id(site.parameter)]
