"""Optimizers under sparse execution: which may act on values alone, and how their parameters and state follow."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.optim import Optimizer

ELEMENTWISE = (
    optim.SGD,
    optim.Adam,
    optim.AdamW,
    optim.NAdam,
    optim.RAdam,
    optim.Adamax,
    optim.Adagrad,
    optim.Adadelta,
    optim.RMSprop,
    optim.Rprop,
    optim.ASGD,
)


def check_elementwise(optimizers: Iterable[Optimizer]) -> None:
    """Refuse optimizers that look at more than one element of a weight at a time, or that we do not know.

    Raises:
        ValueError: names the optimizer and those that can be used.
    """
    for optimizer in optimizers:
        if type(optimizer) not in ELEMENTWISE:
            known = ", ".join(kind.__name__ for kind in ELEMENTWISE)
            raise ValueError(
                f"sparse execution keeps weights as vectors of live values, and {type(optimizer).__name__} is not known "
                f"to treat each element for itself: use one of {known}, or execution='masked'"
            )


def check_loaded(optimizer: Optimizer, state: Mapping[str, Any], names: Mapping[int, str]) -> None:
    """Refuse state of weights that were held in another way: torch would take it, and the next step fail or be wrong.

    Args:
        optimizer: that is about to load.
        state: what it is about to load.
        names: id of a parameter -> layer.

    Raises:
        ValueError: names the first layer.
    """
    if type(optimizer) not in ELEMENTWISE:
        return
    for group, saved in zip(optimizer.param_groups, state["param_groups"], strict=False):
        for parameter, key in zip(group["params"], saved["params"], strict=False):
            name, sparse = names.get(id(parameter), ""), parameter.dim() == 1
            for value in state["state"].get(key, {}).values() if name else ():
                if not isinstance(value, Tensor) or not value.dim():
                    continue
                if value.dim() == 1 if sparse else value.shape == parameter.shape:
                    continue
                raise ValueError(
                    f"the optimizer's state of {name} is {tuple(value.shape)}, "
                    + (
                        "of a dense weight, and the layer runs sparse: load it before attach(), it follows the weights then"
                        if sparse
                        else f"the weight {tuple(parameter.shape)}: it is of another net, or was saved under execution='sparse'"
                    )
                )


def replace(
    optimizers: Iterable[Optimizer],
    old: nn.Parameter,
    new: nn.Parameter,
    follow: Callable[[Tensor, float], Tensor],
) -> None:
    """Put another parameter in a parameter's place in every group; state of its shape follows.

    ``follow`` is given a state tensor and the value of a fresh weight's state, and returns the new one.
    """
    for optimizer in optimizers:
        begins = {key: fresh(optimizer, key, old) for key in optimizer.state.get(old, {})}
        for group in optimizer.param_groups:
            group["params"] = [new if parameter is old else parameter for parameter in group["params"]]
        if old in optimizer.state:
            state = optimizer.state.pop(old)
            optimizer.state[new] = {
                key: follow(value, begins[key]) if _follows(value, old.shape) else value
                for key, value in state.items()
            }


@dataclass(frozen=True)
class Slot:
    """A state tensor that belongs to a parameter's weights: where it is held, and the value a fresh weight has."""

    holder: dict | list
    key: Any
    fresh: float

    @property
    def tensor(self) -> Tensor:
        """The state tensor."""
        return self.holder[self.key]


def slots(optimizers: Iterable[Optimizer], parameter: nn.Parameter) -> list[Slot]:
    """Every state tensor of a parameter's shape, whatever its key, also within dicts, lists and tuples."""
    return [
        Slot(holder, key, fresh(optimizer, key, parameter))
        for optimizer in optimizers
        for holder, key in _entries(optimizer.state.get(parameter, {}))
        if _follows(holder[key], parameter.shape)
    ]


def states(optimizers: Iterable[Optimizer], parameter: nn.Parameter) -> list[Tensor]:
    """The tensors of ``slots``; cheap, as it is asked for at every step."""
    return [
        holder[key]
        for optimizer in optimizers
        for holder, key in _entries(optimizer.state.get(parameter, {}))
        if _follows(holder[key], parameter.shape)
    ]


def _entries(holder: Any) -> Iterator[tuple[Any, Any]]:
    """All places in a container and those within it."""
    for key in holder if isinstance(holder, dict) else range(len(holder)):
        if isinstance(holder[key], dict | list | tuple):
            yield from _entries(holder[key])
        else:
            yield holder, key


def fresh(optimizer: Optimizer, key: Any, parameter: nn.Parameter) -> float:
    """What a weight's state begins with: zero, but for the two optimizers of torch that begin elsewhere."""
    groups = (group for group in optimizer.param_groups if any(p is parameter for p in group["params"]))
    group = next(groups, optimizer.param_groups[0])
    if isinstance(optimizer, optim.Rprop) and key == "step_size":
        return float(group["lr"])
    if isinstance(optimizer, optim.Adagrad) and key == "sum":
        return float(group["initial_accumulator_value"])
    return 0.0


def forget_directions(optimizers: Iterable[Optimizer]) -> None:
    """Let LBFGS begin anew: its flat directions of earlier steps would move weights that are gone."""
    for optimizer in optimizers:
        if isinstance(optimizer, optim.LBFGS):
            optimizer.state.clear()


def begin_anew(optimizers: Iterable[Optimizer]) -> None:
    """Give optimizers the state that they have before their first step."""
    for optimizer in optimizers:
        optimizer.state.clear()
        if isinstance(optimizer, optim.Adagrad):  # older versions of torch make its state only with it
            groups = [dict(group) for group in optimizer.param_groups]
            first = optimizer.defaults["initial_accumulator_value"]
            optimizer.state.update(optim.Adagrad(groups, initial_accumulator_value=first).state)


def _follows(value: object, shape: torch.Size) -> bool:
    return isinstance(value, Tensor) and value.shape == shape and value.dim() > 0
