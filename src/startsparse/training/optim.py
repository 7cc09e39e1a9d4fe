"""Optimizers and learning-rate schedules by name.

The learning rate is a pure function of the optimizer step: nothing accumulates, so a resumed run cannot drift.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from startsparse.training.names import find

_REFUSED = {
    "lbfgs": "it needs a closure and several passes per step, which the training loop does not make",
    "sparseadam": "it takes gradients of sparse layout, which masked training does not make",
}
OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    name.lower(): value
    for name, value in vars(torch.optim).items()
    if isinstance(value, type)
    and issubclass(value, torch.optim.Optimizer)
    and value is not torch.optim.Optimizer
    and name.lower() not in _REFUSED
}


def optimizer_class(name: str) -> type[torch.optim.Optimizer]:
    """The class of an optimizer, by its lower-case name.

    Example:
        >>> optimizer_class("adamw").__name__
        'AdamW'
        >>> optimizer_class("lbfgs")
        Traceback (most recent call last):
        ValueError: optimizer 'lbfgs': it needs a closure and several passes per step, which the training loop does not make
    """
    if name in _REFUSED:
        raise ValueError(f"optimizer {name!r}: {_REFUSED[name]}")
    return find("optimizer", name, OPTIMIZERS)


def make(name: str, parameters: Iterable[nn.Parameter], **hyper_parameters: Any) -> torch.optim.Optimizer:
    """Any optimizer of ``torch.optim`` by its lower-case name.

    Example:
        >>> make("sgd", nn.Linear(2, 2).parameters(), lr=0.1, momentum=0.9).defaults["momentum"]
        0.9
    """
    constructor: Any = optimizer_class(name)  # what an optimizer takes besides is its own affair
    return constructor(parameters, **hyper_parameters)


@dataclass(frozen=True)
class Schedule:
    """Factor on the learning rate at each optimizer step; ``constant`` as it stands.

    Args:
        warmup: steps (an int), or share of the run (a float below 1), over which the factor rises from 0 in a line.
    """

    warmup: float = 0

    def __post_init__(self):
        if (
            isinstance(self.warmup, bool)
            or self.warmup < 0
            or (isinstance(self.warmup, float) and self.warmup >= 1)
        ):
            raise ValueError(
                f"warmup is a number of steps or a share of the run below 1, got {self.warmup!r}"
            )

    def factor(self, step: int, total_steps: int) -> float:
        """The factor at ``step`` of ``total_steps``, counted from 0.

        Example:
            >>> [round(Cosine(warmup=2).factor(step, 10), 3) for step in (0, 1, 2, 6, 9)]
            [0.5, 1.0, 1.0, 0.5, 0.038]
        """
        warm = round(self.warmup * total_steps) if isinstance(self.warmup, float) else self.warmup
        if step < warm:
            return (step + 1) / warm
        return self.shape((step - warm) / max(1, total_steps - warm))

    def shape(self, done: float) -> float:
        """The factor once ``done`` of the run after the warm-up has passed, 0 <= done < 1."""
        return 1.0


@dataclass(frozen=True)
class Cosine(Schedule):
    """Half a cosine from 1 down to ``final``."""

    final: float = 0.0

    def shape(self, done: float) -> float:
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * done))


@dataclass(frozen=True)
class Linear(Schedule):
    """A line from 1 down to ``final``."""

    final: float = 0.0

    def shape(self, done: float) -> float:
        return 1 + (self.final - 1) * done


@dataclass(frozen=True)
class MultiStep(Schedule):
    """Multiplied by ``gamma`` at each share of the run in ``at``."""

    at: Sequence[float] = (0.5, 0.75)
    gamma: float = 0.1

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "at", tuple(self.at))
        if any(isinstance(share, bool) or not 0 < share < 1 for share in self.at):
            raise ValueError(f"at holds shares of the run in (0, 1), got {list(self.at)}")

    def shape(self, done: float) -> float:
        return self.gamma ** sum(done >= share for share in self.at)


@dataclass(frozen=True)
class Step(Schedule):
    """Multiplied by ``gamma`` each time another share ``every`` of the run has passed."""

    every: float = 0.3
    gamma: float = 0.1

    def __post_init__(self):
        super().__post_init__()
        if isinstance(self.every, bool) or not 0 < self.every <= 1:
            raise ValueError(f"every is a share of the run in (0, 1], got {self.every!r}")

    def shape(self, done: float) -> float:
        return self.gamma ** int(done / self.every + 1e-9)


SCHEDULES: dict[str, type[Schedule]] = {
    "constant": Schedule,
    "cosine": Cosine,
    "linear": Linear,
    "multistep": MultiStep,
    "step": Step,
}


def schedule(name: str, **hyper_parameters: Any) -> Schedule:
    """A schedule by name.

    Example:
        >>> schedule("multistep", at=[0.5], gamma=0.2).factor(5, 10)
        0.2
    """
    return find("schedule", name, SCHEDULES)(**hyper_parameters)


class LearningRate:
    """Sets the learning rate of every parameter group to its own base rate times the factor of the step."""

    def __init__(self, optimizer: torch.optim.Optimizer, schedule: Schedule, total_steps: int):
        self.optimizer, self.schedule, self.total_steps = optimizer, schedule, total_steps
        self.base = [float(group["lr"]) for group in optimizer.param_groups]

    def set(self, step: int) -> float:
        """Set the rates for ``step``; returns that of the first group."""
        factor = self.schedule.factor(step, self.total_steps)
        for group, base in zip(self.optimizer.param_groups, self.base, strict=True):
            group["lr"] = base * factor
        return self.base[0] * factor

    def state_dict(self) -> dict[str, Any]:
        """What the rate is a function of, besides the step."""
        return {"schedule": repr(self.schedule), "total_steps": self.total_steps, "base": list(self.base)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Check that a checkpoint was trained at these rates.

        Raises:
            ValueError: it was not; both are named.
        """
        mine = self.state_dict()
        for key, value in mine.items():
            if state[key] != value:
                raise ValueError(
                    f"the checkpoint's learning rate differs in {key}: {state[key]}, now {value}"
                )
