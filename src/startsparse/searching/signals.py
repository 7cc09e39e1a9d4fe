"""What is measured once before a search: gradients, Hessian-gradient products, norms of activations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from ..layers import Layer
from ..passes import Passes
from .batch_norm import inputs_of

Loss = Callable[[Any, Any], Tensor]


def measure(
    signal: str,
    model: nn.Module,
    layers: Mapping[str, Layer],
    masks: Mapping[str, Tensor],
    data: Iterable[Any],
    loss_fn: Loss | None,
) -> dict[str, Tensor]:
    """A signal over some batches, for every layer, of the weight's shape.

    Args:
        signal: "gradient" (summed over batches, in training mode), "hessian_gradient" (the Hessian times the gradient,
            in two halves of each batch) or "activation" (the norm of the layer's input over all examples and places,
            for each input channel, in evaluation mode).
        model: nothing of it changes.
        layers: the layers.
        masks: bool, of the weights' shapes: where weights may be.
        data: batches of (inputs, targets), or of inputs for "activation".
        loss_fn: (outputs, targets) -> mean loss.

    Raises:
        ValueError: no batch, or a layer whose inputs cannot be told.
    """
    batches = list(data)
    if not batches:
        raise ValueError("data= has no batch: nothing could be measured")
    if signal == "activation":
        return _activations(model, layers, batches)
    passes = Passes(model, layers, batches, loss_fn)
    pairs = passes.batches(len(batches))
    if signal == "gradient":
        return passes.gradients(masks, pairs)
    return passes.hessian_gradients(masks, pairs, temperature=1.0)


@torch.no_grad()
def _activations(model: nn.Module, layers: Mapping[str, Layer], data: Iterable[Any]) -> dict[str, Tensor]:
    squares: dict[str, Tensor] = {}

    def watch(layer: Layer):
        def hook(module: nn.Module, args: tuple) -> None:
            x = args[0].detach().float()
            axis = -1
            if isinstance(module, _ConvNd):
                axis = 1 if x.dim() == module.weight.dim() else 0
            norm = x.movedim(axis, -1).reshape(-1, x.shape[axis]).square().sum(0)
            squares[layer.name] = squares.get(layer.name, 0) + norm

        return hook

    for layer in layers.values():
        kind = type(layer.module).__name__
        plain = isinstance(layer.module, nn.Linear | _ConvNd) and layer.attribute == "weight"
        if not plain or isinstance(layer.module, _ConvTransposeNd):
            raise ValueError(
                f"{layer.name} belongs to a {kind}, whose inputs are not seen: leave it out (layers=)"
            )
    handles = [layer.module.register_forward_pre_hook(watch(layer)) for layer in layers.values()]
    modes = [(module, module.training) for module in model.modules()]
    try:
        _ = model.eval()
        for batch in data:
            inputs = inputs_of(batch)
            device = next(iter(layers.values())).parameter.device
            _ = model(inputs.to(device) if isinstance(inputs, Tensor) else inputs)
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes:
            module.training = training
    missing = [name for name in layers if name not in squares]
    if missing:
        raise ValueError(f"nothing went through {', '.join(missing)}: leave them out with layers=")
    return {name: _spread(squares[name].sqrt(), layer) for name, layer in layers.items()}


def _spread(norm: Tensor, layer: Layer) -> Tensor:
    """(in,) -> the weight's shape: with groups, each output sees its own group's inputs."""
    shape, groups = layer.shape, layer.geometry.groups
    rows = norm.view(groups, 1, shape[1]).expand(groups, shape[0] // groups, shape[1]).reshape(shape[:2])
    return rows.reshape(shape[:2] + (1,) * (len(shape) - 2)).expand(shape).contiguous()
