"""``attach``: the arguments looked at, then a sparsifier made of them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from .execution.choice import EXECUTIONS, on_the_cpu
from .layers import check_module
from .methods import Method
from .methods.base import check_attachable
from .names import nearest
from .scalars import as_plain
from .schedules import run_length
from .sources import Source, or_dense, refuse_locked
from .sparsifier import Sparsifier


def attach(
    model: nn.Module,
    optimizer: Optimizer | Sequence[Optimizer],
    method: Method,
    *,
    source: Source | None = None,
    total_steps: int | None = None,
    layers: str | Sequence[str] | None = None,
    execution: str = "masked",
    data: Any = None,
    loss_fn: Any = None,
    example_input: Any = None,
    power: float = 1.0,
) -> Sparsifier:
    """Make a model sparse now and keep it sparse while it is trained; the training loop does not change.

    Under masked execution the model stays the plain module it was: same parameters, same state_dict keys, nothing
    wrapped. Gradients are masked where they arrive, inactive weights are exactly zero after every optimizer step, and
    the method's topology changes happen after the steps it is due at. Under sparse execution there are only live weights.

    Args:
        model: any module, also under DistributedDataParallel or torch.compile.
        optimizer: the optimizer, or several; the first is the clock.
        method: what decides which weights live, e.g. ``ss.RigL(density=0.05)``.
        source: where weights may live, e.g. ``ss.RandomSource(density=0.3)``; default: everywhere.
        total_steps: optimizer steps of the run; needed where a schedule is a fraction of it.
        layers: names or globs of the weights to be sparse, ``!name`` excludes; default: every Linear, convolution
            and attention projection weight.
        execution: "masked" (dense storage and compute, zeros in place), "sparse" (Linear and Conv2d keep and compute
            live values alone, on the CPU; the modules are turned in place), or "auto" (the faster of the two for each
            layer, timed at the shapes of ``example_input``).
        data: batches ``(inputs, target)``, for methods that make passes of their own (GraSP, SNIP over several batches).
        loss_fn: ``loss_fn(model(inputs), target)``, for the same.
        example_input: inputs of a batch, for ``execution="auto"`` and for methods that need one (SynFlow).
        power: powerpropagation: the optimizer trains roots r of the sparse weights, w = r |r|^(power - 1), so that
            large ones move more; 1: none. A method that grows weights must then grow them away from zero.

    Returns:
        The ``Sparsifier``. Nothing of it has to be called in the loop.

    Raises:
        ValueError: an impossible density, an unknown layer, a weight that no optimizer updates, or a model that is
            attached already. The model is untouched then.

    Example:
        >>> import torch
        >>> import startsparse as ss
        >>> model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 3))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> sparse = ss.attach(model, optimizer, ss.SET(density=0.2, update_interval=2), total_steps=8)
        >>> for _ in range(8):
        ...     model(torch.randn(4, 20)).square().mean().backward()
        ...     optimizer.step()
        ...     optimizer.zero_grad()
        >>> sparse.density, sparse.target_count
        (0.2, 138)
    """
    check_module(model)
    optimizers = as_optimizers(optimizer)
    check_attachable(method)
    refuse_locked(source)
    if execution not in EXECUTIONS:
        raise ValueError(f"unknown execution {execution!r}: {nearest(str(execution), EXECUTIONS)}")
    total_steps, power = run_length(total_steps), as_plain(power)
    given = {"data": data, "loss_fn": loss_fn, "example_input": example_input}
    used = {*method.needs, *(["example_input"] if execution == "auto" else [])}
    missing = [name for name in method.needs if given[name] is None]
    if missing:
        raise ValueError(
            f"{method.name} scores the weights by passes of its own: attach() needs {', '.join(f'{n}=' for n in missing)}"
        )
    for name in [name for name, value in given.items() if value is not None and name not in used]:
        warnings.warn(f"{method.name} makes no passes that need it: {name}= is not used", stacklevel=2)
    if loss_fn is not None and not callable(loss_fn):
        raise TypeError(
            f"loss_fn must be a function, called as loss_fn(model(inputs), target), got {loss_fn!r}"
        )
    if data is not None and not hasattr(data, "__iter__"):
        raise TypeError(f"data must give batches (inputs, target), got {data!r}")
    with on_the_cpu(execution):
        return Sparsifier(
            model, optimizers, method, or_dense(source), total_steps, layers, execution, given, power
        )


def as_optimizers(optimizer: Optimizer | Sequence[Optimizer]) -> list[Optimizer]:
    """One optimizer or several as a list.

    Raises:
        TypeError: something else is among them.
        ValueError: there is none.
    """
    optimizers = list(optimizer) if isinstance(optimizer, list | tuple) else [optimizer]
    for one in optimizers:
        if not isinstance(one, Optimizer):
            raise TypeError(
                f"optimizer must be a torch.optim.Optimizer or a list of them, got {type(one).__name__}; attach to the "
                "raw optimizer before it is wrapped"
            )
    if not optimizers:
        raise ValueError("no optimizer was given: the first one is the clock")
    return optimizers  # type: ignore[return-value]
