"""Sparse linear layers that follow each other in an ``nn.Sequential`` run as one operation.

The container is turned in place, as the layers are (its class changes, the object stays): modules, names, parameters and
state_dict are those it had. Wherever somebody looks at what passes between two of the layers (a hook, a tracer,
autocast, a transform), they are called one by one, as ever; results are the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..kernels import Link, chained_linear
from .modules import SparseLinear

_NOTHING_IN_EVAL = (nn.Dropout, nn.AlphaDropout, nn.FeatureAlphaDropout)
_has_global_hooks = getattr(nn.modules.module, "_has_any_global_hook", lambda: True)


class SparseSequential(nn.Sequential):
    """``nn.Sequential``; what it calls and what it gives are the same."""

    def forward(self, input: Tensor) -> Tensor:
        """Each module's output into the next one."""
        if torch.compiler.is_compiling() or torch._C._is_tracing() or _has_global_hooks():
            return super().forward(input)
        modules = list(self._modules.values())
        at = 0
        while at < len(modules):
            links, after = _chain(modules, at)
            output = chained_linear(input, links) if len(links) > 1 else None
            if output is None:
                for module in modules[at:after]:
                    input = module(input)  # type: ignore[misc]
            else:
                input = output
            at = after
        return input

    def _get_name(self) -> str:
        return nn.Sequential.__name__


def join(model: nn.Module) -> None:
    """Let the sparse linear layers of plain containers run together where they can."""
    for module in model.modules():
        sparse = sum(type(child) is SparseLinear for child in module._modules.values())
        if type(module) is nn.Sequential and sparse > 1 and "forward" not in module.__dict__:
            module.__class__ = SparseSequential


def part(model: nn.Module) -> None:
    """The inverse of ``join``, for containers without sparse layers."""
    for module in model.modules():
        sparse = any(type(child) is SparseLinear for child in module._modules.values())
        if type(module) is SparseSequential and not sparse:
            module.__class__ = nn.Sequential  # type: ignore[assignment]


def _chain(modules: Sequence[nn.Module | None], start: int) -> tuple[list[Link], int]:
    """The sparse linear layers that begin here and run together, and what comes after them; else the next module."""
    layers: list[SparseLinear] = []
    relu: list[bool] = []
    after = start + 1
    for at in range(start, len(modules)):
        module = modules[at]
        if module is None or not _is_quiet(module):
            break
        if type(module) is SparseLinear:
            layers.append(module)
            relu.append(False)
            after = at + 1
        elif not layers:
            break
        elif type(module) is nn.ReLU:
            relu[-1] = True
        elif type(module) is not nn.Identity and (module.training or type(module) not in _NOTHING_IN_EVAL):
            break
    if len(layers) < 2:
        return [], start + 1
    relu[-1] = False  # what follows the last layer is called by itself
    return [
        Link(m.weight, m.bias, m.pattern, m.out_features, r) for m, r in zip(layers, relu, strict=True)
    ], after


def _is_quiet(module: nn.Module) -> bool:
    """Whether nobody has hooked into a module, or replaced what it does."""
    return not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or module._compiled_call_impl is not None
        or "forward" in module.__dict__
    )
