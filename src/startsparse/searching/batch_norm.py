"""Running statistics of batch norm, measured anew: a sparse sub-network's activations are not the dense net's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def inputs_of(batch: Any) -> Any:
    """What goes into the model: a batch, or the first item of (inputs, labels)."""
    return batch[0] if isinstance(batch, list | tuple) else batch


@torch.no_grad()
def reestimate_batch_norm(model: nn.Module, data: Iterable[Any], *, batches: int | None = None) -> int:
    """Replace the running statistics of all batch-norm layers by the averages over some batches.

    Every batch weighs the same. Nothing else of the model changes; dropout and the like are off, and the train and
    evaluation modes are put back.

    Args:
        model: any module; one without batch norm is left as it is.
        data: batches of inputs, or of (inputs, labels).
        batches: at most so many of them; default: all.

    Returns:
        The number of batches seen.

    Raises:
        ValueError: there was no batch; the statistics are as they were.

    References:
        Wu and Johnson, Rethinking "Batch" in BatchNorm, 2021, section 3.2, https://arxiv.org/abs/2105.07576

    Example:
        >>> model = nn.Sequential(nn.BatchNorm1d(2))
        >>> reestimate_batch_norm(model, [torch.tensor([[1.0, 2.0], [3.0, 2.0]])])
        1
        >>> model[0].running_mean
        tensor([2., 2.])
    """
    norms = [
        module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats
    ]
    if not norms:
        return 0
    modes = [(module, module.training) for module in model.modules()]
    before = [(norm, norm.momentum, {k: v.clone() for k, v in norm.named_buffers()}) for norm in norms]
    hooks = [(norm, norm._forward_pre_hooks.copy()) for norm in norms]
    seen = 0
    try:
        _ = model.eval()
        for norm in norms:
            norm._forward_pre_hooks.clear()  # one that keeps it in evaluation mode
            _ = norm.train()
            norm.reset_running_stats()
            norm.momentum = None  # type: ignore[assignment]  # a plain average over the batches
        device = next(model.parameters()).device
        for batch in data:
            if batches is not None and seen == batches:
                break
            inputs = inputs_of(batch)
            _ = model(inputs.to(device) if isinstance(inputs, Tensor) else inputs)
            seen += 1
    finally:
        for module, training in modes:
            module.training = training
        for (norm, momentum, buffers), (_, kept) in zip(before, hooks, strict=True):
            norm.momentum = momentum
            norm._forward_pre_hooks.update(kept)
            if not seen:
                for key, value in buffers.items():
                    getattr(norm, key).copy_(value)
    if not seen:
        raise ValueError("reestimate_batch_norm: data has no batch")
    return seen
