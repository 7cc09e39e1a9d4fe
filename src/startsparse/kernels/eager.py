"""The short way to the kernels, past torch's dispatcher, where nobody else wants to see the call.

In a plain eager training step the dispatcher's detour through Python costs about 50 microseconds per layer, as
much as a very sparse layer itself. Under compilation, autocast, transforms, tensor subclasses or any dispatch
mode, and for second derivatives, the registered operators are used instead; both lead to the same code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_PLAIN = (Tensor, torch.nn.Parameter)


def _there_may_be_some() -> int:
    return 1


# How many modes or transforms look on; where torch cannot tell, there may be some.
_dispatch_modes, _function_modes, _transforms = (
    getattr(torch._C, name, _there_may_be_some)
    for name in ("_len_torch_dispatch_stack", "_len_torch_function_stack", "_are_functorch_transforms_active")
)


@dataclass(frozen=True)
class Layer:
    """A layer's passes: as plain functions, and ``operator``, the registered backward pass."""

    forward: Callable[..., Tensor]
    backward: Callable[..., tuple[Tensor, Tensor, Tensor]]
    operator: Callable[..., tuple[Tensor, Tensor, Tensor]]


def is_plain(*tensors: Tensor | None) -> bool:
    """Whether a call with these tensors is eager, and nobody looks on."""
    if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return False
    if _dispatch_modes() or _function_modes() or _transforms():
        return False
    for tensor in tensors:  # called at every step: a generator would take twice as long
        if tensor is not None and not (type(tensor) in _PLAIN and tensor.is_cpu):
            return False
    return True


def run(layer: Layer, x: Tensor, values: Tensor, bias: Tensor | None, pattern: Tensor, *rest) -> Tensor:
    """``layer.forward(x, values, bias, pattern, *rest)``, with gradients where they are wanted."""
    if torch.is_grad_enabled():
        wanted = x.requires_grad, values.requires_grad, bias is not None and bias.requires_grad
        if any(wanted):
            return _apply(x, values, bias, pattern, layer, wanted, rest)
    return layer.forward(x, values, bias, pattern, *rest)


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, values, bias, pattern, layer, wanted, rest):
        ctx.save_for_backward(x, values)
        ctx.call = layer, pattern, wanted, rest[1:]  # without the number of outputs
        return layer.forward(x, values, bias, pattern, *rest)

    @staticmethod
    def backward(ctx, dy):
        layer, pattern, wanted, rest = ctx.call
        x, values = ctx.saved_tensors
        again = torch.is_grad_enabled() or not is_plain(dy, x, values)
        passes = layer.operator if again else layer.backward
        dx, dw, db = passes(dy, x, values, pattern, *rest, wanted)
        want_x, want_values, want_bias = wanted
        return (
            dx if want_x else None,
            dw if want_values else None,
            db if want_bias else None,
            None, None, None, None,
        )  # fmt: skip


# ``_Function.apply`` less its look for transforms, which ``is_plain`` has excluded.
_apply = super(torch.autograd.Function, _Function).apply  # type: ignore[attr-defined]
