"""Turn a model that has zeros already into one that computes its live weights alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from ..layers import find
from .auto import faster
from .chains import join, part
from .choice import Choice, choose, on_the_cpu
from .hooks import attached_to
from .modules import is_sparse, to_dense, to_sparse


def sparsify_execution(
    model: nn.Module, layers: str | Sequence[str] | None = None, *, example_input: Any = None
) -> dict[str, Choice]:
    """Truly sparse where it is faster: Linear and Conv2d modules keep and compute their non-zero weights alone.

    For inference, or for training with the positions that are there (make the optimizer afterwards: the parameters are
    new). The modules are turned in place; ``attach(..., execution="sparse")`` does the same for a method that changes
    positions.

    Args:
        model: whose zeros are final.
        layers: names or globs; default: every weight that may be sparse.
        example_input: a batch; with it each layer is timed both ways, without it those at most a fifth full are turned.

    Returns:
        Parameter name -> what was chosen, and why.

    Raises:
        ValueError: a layer's name matches nothing, or the model is under DistributedDataParallel.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        >>> _ = model[0].weight.data.mul_(torch.rand(64, 64) < 0.05)
        >>> {name: choice.execution for name, choice in sparsify_execution(model).items()}
        {'0.weight': 'sparse', '2.weight': 'masked'}
    """
    try:
        found = find(model, layers)
    except ValueError as error:
        turned = [name or "the model" for name, module in model.named_modules() if is_sparse(module)]
        if not turned:
            raise
        raise ValueError(
            f"{error}; {', '.join(turned)} run sparse already: ss.densify_execution(model) turns them back"
        ) from error
    choices = choose("auto", model, found, [])
    able = {name: found[name] for name, choice in choices.items() if choice.execution == "sparse"}
    live = {name: layer.parameter.detach().reshape(-1).nonzero().squeeze(1) for name, layer in able.items()}
    choices |= faster(model, able, {name: len(positions) for name, positions in live.items()}, example_input)
    with on_the_cpu("sparse"):
        for name, layer in able.items():
            if choices[name].execution == "sparse":
                values = layer.parameter.detach().reshape(-1)[live[name]]
                _ = to_sparse(layer.module, layer.shape, live[name], values)
    join(model)
    return choices


def densify_execution(model: nn.Module) -> None:
    """The inverse of ``sparsify_execution``: plain modules with zeros in place (attached ones are left to ``detach``).

    Raises:
        ValueError: a layer is attached to a sparsifier.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(64, 64))
        >>> _ = model[0].weight.data.mul_(torch.rand(64, 64) < 0.05)
        >>> _ = sparsify_execution(model)
        >>> densify_execution(model)
        >>> type(model[0]).__name__, tuple(model[0].weight.shape)
        ('Linear', (64, 64))
    """
    turned = {name: module for name, module in model.named_modules() if is_sparse(module)}
    for name, module in turned.items():
        if attached_to(module.weight):  # type: ignore[arg-type]
            raise ValueError(f"{name}.weight is attached to a sparsifier: call its detach()")
    for module in turned.values():
        _ = to_dense(module)
    part(model)
