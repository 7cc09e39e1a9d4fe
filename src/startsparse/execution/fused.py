"""Convolution, batch norm and ReLU (and a way around them) as one operation, where nets ask for it.

Blocks of our models, containers (``chains``) and traced modules (``program``) give convolutions with their norms to
``chain`` and go the plain way where that returns None: where a convolution is not executed sparsely, or where somebody
would miss what is left out. That is so

- for any hook on a module that would not be called (and any global module hook),
- under torch.compile, torch.export, tracing, autocast, vmap and torch's dispatch or function modes,
- without the compiled kernels, with tensors that are not plain float32 on the CPU, for a batch of fewer than 12 items,
- for a norm that is not exactly ``nn.BatchNorm2d``, that uses running statistics while gradients are wanted, or that
  sees one value per channel (which torch refuses),
- if it was turned off: ``fused_blocks(False)``.

Outputs, gradients and running statistics are those of the plain way but for rounding.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..kernels import from_blocked, to_blocked
from ..kernels.block import ConvNorm, available, run_block
from ..kernels.eager import is_plain
from . import noted
from .modules import SparseConv2d

LANES = 16  # items that lie side by side
FEWEST = 12  # items of a batch; for fewer, convolutions go along the image, which costs less than empty lanes
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_GLOBAL = nn.modules.module

_on = True


def fused_blocks(on: bool) -> bool:
    """Let blocks of convolutions, batch norms and ReLUs be computed as one operation, or layer by layer.

    For all models of this process; on at first. It changes results by rounding alone.

    Returns:
        What it was before.

    Example:
        >>> was = fused_blocks(False)
        >>> fused_blocks(was)
        False
    """
    global _on
    was, _on = _on, on
    return was


def is_on() -> bool:
    """What ``fused_blocks`` was last told."""
    return _on


@dataclass(frozen=True)
class Blocked:
    """Activations on their way between blocks: [tiles, channels, height, width, lanes], for a batch of items."""

    tensor: Tensor
    batch: int


def enter(
    x: Tensor | Blocked, convs: Iterable[nn.Module], skipped: Iterable[nn.Module] = ()
) -> Tensor | Blocked:
    """x in the layout of fused blocks where these can be used, else in torch's.

    Args:
        x: [batch, channels, height, width].
        convs: convolutions of the block that comes; there is no use if one is not executed sparsely.
        skipped: modules that would not be called, or would see the layout.
    """
    if isinstance(x, Blocked):
        return x if all(map(unobserved, skipped)) else rows(x)
    if (
        not all(type(conv) is SparseConv2d for conv in convs)
        or not able(x)
        or not all(map(unobserved, skipped))
    ):
        return x
    return pack(x)


def able(x: Tensor) -> bool:
    """Whether fused blocks can be computed on x, and nobody looks on."""
    if not _on or torch.compiler.is_compiling() or torch._C._is_tracing():
        return False
    if not is_plain(x) or x.dtype != torch.float32 or x.dim() != 4 or not x.numel() or not available():
        return False
    return x.shape[0] >= FEWEST and not observed_globally()


def pack(x: Tensor) -> Blocked:
    """x, which is able to be, in the layout of fused blocks."""
    return Blocked(to_blocked(x, LANES), x.shape[0])


def rows(x: Tensor | Blocked) -> Tensor:
    """Activations in torch's layout again."""
    if not isinstance(x, Blocked):  # a tensor, or what stands for one while a net is traced
        return x
    return from_blocked(x.tensor, x.batch)


def chain(
    x: Tensor | Blocked,
    pairs: Sequence[tuple[nn.Module, nn.Module]],
    around: Blocked | None = None,
    relu: bool = True,
) -> Blocked | None:
    """``relu(norm(conv(x)))`` for each pair of convolution and norm, after the other; None if it must not be fused.

    Args:
        x: what ``enter`` gave.
        pairs: convolution and norm.
        around: is added before the last ReLU.
        relu: whether there is one after the last norm.
    """
    if not isinstance(x, Blocked) or any(obstacle(conv, norm, x.batch) for conv, norm in pairs):
        return None
    links = [_link(conv, norm) for conv, norm in pairs]
    out, norms = run_block(x.tensor, x.batch, links, None if around is None else around.tensor, relu)
    for (_, norm), found in zip(pairs, norms, strict=True):
        if found.more is not None:
            _note(norm, found.pre[2], found.more[1])
    noted.together(module for pair in pairs for module in pair)
    return Blocked(out, x.batch)


def obstacle(conv: nn.Module, norm: nn.Module, batch: int) -> str:
    """Why a convolution and the norm after it must not be one operation, or an empty string."""
    if type(conv) is not SparseConv2d:
        return "not a convolution that is executed sparsely"
    if type(norm) is not nn.BatchNorm2d:
        return f"followed by {type(norm).__name__}, not by a batch norm"
    if not (unobserved(conv) and unobserved(norm)):
        return "somebody looks at it or at its norm"
    if _uses_running(norm) and torch.is_grad_enabled():
        return "its norm uses running statistics, and gradients are wanted"
    if batch < FEWEST:
        return f"a batch of {batch}: at least {FEWEST} items are needed"
    tensors = conv.weight, conv.bias, norm.weight, norm.bias, norm.running_mean, norm.running_var
    if not all(t is None or (t.dtype == torch.float32 and t.is_contiguous()) for t in tensors):
        return "not all of it is contiguous float32"
    if not is_plain(*tensors[:4]):
        return "its parameters are not plain tensors"
    return "" if conv.out_channels == norm.num_features else "its norm is of another width"


def _uses_running(norm: nn.BatchNorm2d) -> bool:
    return not norm.training and norm.running_mean is not None and norm.running_var is not None


def _link(conv: nn.Module, norm: nn.Module) -> ConvNorm:
    """A pair without an obstacle, as the kernels want it."""
    assert isinstance(conv, SparseConv2d) and isinstance(norm, nn.BatchNorm2d)
    running = (norm.running_mean, norm.running_var) if _uses_running(norm) else None
    return ConvNorm(
        conv.weight, conv.pattern, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation,
        conv.groups, conv.bias, norm.eps, norm.weight, norm.bias, running,  # type: ignore[arg-type]
    )  # fmt: skip


@torch.no_grad()
def _note(norm: nn.Module, mean: Tensor, variance: Tensor) -> None:
    """Running statistics, as the norm itself would keep them."""
    assert isinstance(norm, nn.BatchNorm2d)
    if not (norm.training and norm.track_running_stats):
        return
    factor = norm.momentum
    if norm.num_batches_tracked is not None:
        _ = norm.num_batches_tracked.add_(1)
        if factor is None:
            factor = 1.0 / float(norm.num_batches_tracked)
    for running, now in ((norm.running_mean, mean), (norm.running_var, variance)):
        if running is not None:
            _ = running.lerp_(now, factor or 0.0)


def unobserved(module: nn.Module) -> bool:
    """Whether nobody would miss a call of the module: no hook, no other ``forward``, not compiled."""
    held = module.__dict__
    return not (
        held["_forward_hooks"]
        or held["_forward_pre_hooks"]
        or held["_backward_hooks"]
        or held.get("_backward_pre_hooks")
        or held.get("_compiled_call_impl") is not None
        or "forward" in held
    )


def observed_globally() -> bool:
    """Whether somebody hooked into all modules."""
    return any(getattr(_GLOBAL, f"_global{name}", None) for name in _HOOKS)
