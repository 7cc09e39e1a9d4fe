"""Which execution each layer gets, and why."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import Optimizer

from ..layers import Layer
from ..methods import Method
from .optimizers import check_elementwise

EXECUTIONS = ("masked", "sparse", "auto")
_READ_BY_OTHERS = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)


@dataclass(frozen=True)
class Choice:
    """How a layer is executed, and the reason if it is not as asked."""

    execution: str
    reason: str = ""


def on_the_cpu(execution: str) -> AbstractContextManager:
    """Where layers are turned sparse: on the CPU, also within ``with torch.device("meta")`` or another default device."""
    elsewhere = execution != "masked" and torch.get_default_device().type != "cpu"
    return torch.device("cpu") if elsewhere else nullcontext()  # type: ignore[return-value]


def choose(
    execution: str,
    model: nn.Module,
    layers: Mapping[str, Layer],
    optimizers: Sequence[Optimizer],
    method: Method | None = None,
) -> dict[str, Choice]:
    """The execution of every layer, as far as it can be known before the masks are.

    Args:
        execution: "masked", "sparse", or "auto", whose candidates are returned as "sparse", to be timed.
        model: whose layers they are.
        layers: the layers that may be sparse.
        optimizers: must act element by element under sparse execution.
        method: may have a reason why it runs masked only.

    Raises:
        ValueError: sparse execution cannot work with this model or these optimizers at all.
    """
    on_meta = [name for name, layer in layers.items() if layer.parameter.is_meta]
    if on_meta and execution != "sparse":
        raise ValueError(f"{', '.join(on_meta)}: a model on the meta device needs execution='sparse'")
    if execution == "masked":
        return dict.fromkeys(layers, Choice("masked"))
    if method is not None and method.masked_only:
        if execution == "sparse":
            raise ValueError(f"{method.name} runs under execution='masked' only: {method.masked_only}")
        return dict.fromkeys(layers, Choice("masked", method.masked_only))
    if isinstance(model, nn.parallel.DistributedDataParallel):
        raise ValueError(
            "sparse execution replaces parameters, which DistributedDataParallel holds: use 'masked'"
        )
    if execution == "sparse" and _several_ranks():
        raise ValueError("sparse execution does not average gradients over ranks: use execution='masked'")
    try:
        check_elementwise(optimizers)
    except ValueError as error:
        if execution == "sparse":
            raise
        return dict.fromkeys(layers, Choice("masked", str(error)))
    reasons = {name: obstacle(layer, model) for name, layer in layers.items()}
    masked = {name: reason for name, reason in reasons.items() if reason}
    if any(name in masked for name in on_meta):
        raise ValueError(
            f"on the meta device every layer must run sparse: {masked}; materialise the model or exclude them"
        )
    if masked and execution == "sparse":
        listed = "; ".join(f"{name}: {reason}" for name, reason in masked.items())
        warnings.warn(f"these layers stay masked-dense: {listed}", stacklevel=4)
    return {name: Choice("masked" if reason else "sparse", reason) for name, reason in reasons.items()}


def _several_ranks() -> bool:
    distributed = torch.distributed
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def obstacle(layer: Layer, model: nn.Module) -> str:
    """Why a layer cannot be executed sparse, or an empty string."""
    module, weight = layer.module, layer.parameter
    if type(module) not in (nn.Linear, nn.Conv2d) or layer.attribute != "weight":
        return f"only nn.Linear and nn.Conv2d run sparse, this is {type(module).__name__}.{layer.attribute}"
    if "forward" in module.__dict__:
        return "its forward was replaced"
    if weight.device.type not in ("cpu", "meta") or weight.dtype != torch.float32:
        return f"only float32 on the CPU runs sparse, this is {weight.dtype} on {weight.device}"
    if weight._backward_hooks or getattr(weight, "_post_accumulate_grad_hooks", None):
        return "somebody hooked into its gradient"
    if isinstance(module, nn.Conv2d) and (module.padding_mode != "zeros" or isinstance(module.padding, str)):
        return (
            f"only zero padding given in pixels runs sparse, this is {module.padding_mode}, {module.padding}"
        )
    owners = [m for m in model.modules() for parameter in m._parameters.values() if parameter is weight]
    if len(owners) > 1:
        return "its weight is tied to another module's"
    for parent in model.modules():
        if isinstance(parent, _READ_BY_OTHERS) and any(child is module for child in parent.children()):
            return f"{type(parent).__name__} reads its weight by itself"
    return ""
