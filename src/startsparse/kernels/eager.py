"""The short way to the kernels, past torch's dispatcher, where nobody else wants to see the call.

In a plain eager training step the dispatcher's detour through Python costs about 50 microseconds per layer, as
much as a very sparse layer itself. Under compilation, autocast, transforms, tensor subclasses or any dispatch
mode, and for second derivatives, the registered operators are used instead; both lead to the same code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

_PLAIN = (Tensor, torch.nn.Parameter)


def _there_may_be_some() -> int:
    return 1


# How many modes or transforms look on; where torch cannot tell, there may be some.
_dispatch_modes, _function_modes, _transforms = (
    getattr(torch._C, name, _there_may_be_some)
    for name in ("_len_torch_dispatch_stack", "_len_torch_function_stack", "_are_functorch_transforms_active")
)


@dataclass(frozen=True)
class Passes:
    """A layer's passes as plain functions.

    Attributes:
        prepare: (x, values, bias, pattern, *rest) -> the checked call, which both passes take first.
        forward: (call, x, values, bias, pattern) -> y.
        backward: (call, dy, x, values, pattern, wanted) -> the wanted gradients, None for the others.
        operator: the registered backward pass.
    """

    prepare: Callable[..., Any]
    forward: Callable[..., Tensor]
    backward: Callable[..., tuple[Tensor | None, Tensor | None, Tensor | None]]
    operator: Callable[..., tuple[Tensor, Tensor, Tensor]]


def in_forward_mode() -> bool:
    """Whether there may be tangents, of forward-mode derivatives."""
    return getattr(forward_ad, "_current_level", 0) >= 0


def is_plain(*tensors: Tensor | None) -> bool:
    """Whether a call with these tensors is eager, and nobody looks on."""
    if torch.compiler.is_compiling() or torch._C._is_tracing() or torch.is_autocast_enabled("cpu"):
        return False
    if _dispatch_modes() or _function_modes() or _transforms() or in_forward_mode():
        return False
    for tensor in tensors:  # called at every step: a generator would take twice as long
        if tensor is not None and not (type(tensor) in _PLAIN and tensor.is_cpu):
            return False
    return True


def run(passes: Passes, x: Tensor, values: Tensor, bias: Tensor | None, pattern: Tensor, *rest) -> Tensor:
    """The layer's output, with gradients where they are wanted."""
    call = passes.prepare(x, values, bias, pattern, *rest)
    if torch.is_grad_enabled():
        wanted = x.requires_grad, values.requires_grad, bias is not None and bias.requires_grad
        if any(wanted):
            held = Held(passes, call, rest, x.shape, values.shape)
            return _apply(x, values, bias, pattern, held, wanted)
    return passes.forward(call, x, values, bias, pattern)


class Held(NamedTuple):
    """What a call's backward pass is given of its forward pass, but for tensors.

    Attributes:
        rest: arguments that followed x, values, bias and pattern.
        x_shape, shape: of x and of values.
    """

    passes: Passes
    call: Any
    rest: Sequence[Any]
    x_shape: torch.Size
    shape: torch.Size


def gradients(
    held: Held, wanted: tuple[bool, bool, bool], dy: Tensor, x: Tensor, values: Tensor, pattern: Tensor
) -> tuple[Tensor | None, ...]:
    """Those gradients of x, values and bias that are wanted, None for the others."""
    passes, call, rest, x_shape, shape = held
    if torch.is_grad_enabled() or not is_plain(dy, x, values):
        grads = passes.operator(dy, x, values, pattern, *rest[1:], wanted)
        return tuple(grad if want else None for grad, want in zip(grads, wanted, strict=True))
    float32 = x.dtype == values.dtype == torch.float32
    if not float32 or x.shape != x_shape or values.shape != shape:
        call = passes.prepare(x, values, None, pattern, *rest)  # says what has changed since
    return passes.backward(call, dy, x, values, pattern, wanted)


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, values, bias, pattern, held, wanted):
        ctx.save_for_backward(x, values)
        ctx.held = held, wanted, pattern
        return held.passes.forward(held.call, x, values, bias, pattern)

    @staticmethod
    def backward(ctx, dy):
        held, wanted, pattern = ctx.held
        x, values = ctx.saved_tensors
        return *gradients(held, wanted, dy, x, values, pattern), None, None, None


# ``_Function.apply`` less its look for transforms, which ``is_plain`` has excluded.
_apply = super(torch.autograd.Function, _Function).apply  # type: ignore[attr-defined]
