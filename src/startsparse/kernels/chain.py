"""Sparse linear layers one after the other, with or without ReLU between them, as one operation of eager training.

Activations stay in the blocked layout from the first layer to the last, and each thread takes its part of the batch
through all of them: nothing is unpacked and packed again between two layers, ReLU is a part of the pass that ends or
begins there, and Python and autograd are entered once.

Where that does not apply, ``chained_linear`` says so, and the layers are to be called one by one; results are the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from startsparse.kernels import eager
from startsparse.kernels.checks import check_float, check_weight
from startsparse.kernels.geometry import linear_lanes
from startsparse.kernels.library import backend, threads
from startsparse.kernels.native import NativeBackend, pack_links
from startsparse.kernels.observe import is_watched
from startsparse.kernels.ops import FEW


class Link(NamedTuple):
    """One layer of a chain.

    Attributes:
        values: float32 [nnz], in value order.
        bias: float32 [out_features].
        pattern: ``Pattern.blob`` of the weight.
        out_features: its rows.
        relu: whether max(0, .) follows; never after the last layer.
    """

    values: Tensor
    bias: Tensor | None
    pattern: Tensor
    out_features: int
    relu: bool


class _Plan(NamedTuple):
    """What follows from the shapes: tiles, threads, the shape of the output, and floats of all others."""

    batch: int
    lanes: int
    threads: int
    shape: tuple[int, ...]
    kept: int


class _Call(NamedTuple):
    links: Sequence[Link]
    backend: NativeBackend
    plan: _Plan
    x_shape: torch.Size
    sizes: tuple[int, ...]  # live weights of each


def chained_linear(x: Tensor, links: Sequence[Link]) -> Tensor | None:
    """The output of the last layer, with gradients where they are wanted, or None where the layers must be called.

    Args:
        x: [..., in_features of the first layer].
        links: at least two layers, each of which takes what the one before gives.
    """
    call = _prepare(x, links)
    if call is None:
        return None
    if torch.is_grad_enabled():
        parameters = [*(link.values for link in links), *(link.bias for link in links)]
        if x.requires_grad or any(p is not None and p.requires_grad for p in parameters):
            return _apply(x, call, *parameters)
    return _forward(call, x)[0]


def _prepare(x: Tensor, links: Sequence[Link]) -> _Call | None:
    """What is computed, and in which tiles; None if this is not a plain eager call that pays and that would succeed."""
    tensors = [tensor for link in links for tensor in link[:3]]
    kernels = backend()
    if not isinstance(kernels, NativeBackend) or not eager.is_plain(x, *tensors) or x.dim() < 1:
        return None
    try:
        check_float("x", x)
        features = x.shape[-1]
        for link in links:
            if check_weight(link.pattern, link.values, link.bias, link.out_features, 1) != features:
                return None
            features = link.out_features
    except ValueError:
        return None  # the layer that it is of says so
    sizes = tuple([link.values.numel() for link in links])
    plan = _plan(x.shape, tuple([link.out_features for link in links]), sizes, threads())
    return None if plan is None else _Call(links, kernels, plan, x.shape, sizes)


@lru_cache(maxsize=4096)
def _plan(x: torch.Size, outputs: tuple[int, ...], sizes: tuple[int, ...], most: int) -> _Plan | None:
    """None where the layers are to be called one by one."""
    batch = x[:-1].numel()
    if not batch or not x[-1] or not all(outputs):
        return None
    widths = x[-1] + 2 * sum(outputs)
    team = 1 if batch * max(widths, sum(sizes)) <= FEW else most
    lanes = linear_lanes(batch, widths - outputs[-1], sum(sizes), team)
    tiles = -(-batch // lanes)
    if tiles % team and tiles < 4 * team:
        return None  # threads would wait for each other: they rather share the rows of a layer
    return _Plan(batch, lanes, team, (*x[:-1], outputs[-1]), tiles * lanes * sum(outputs[:-1]))


def _forward(call: _Call, x: Tensor) -> tuple[Tensor, Tensor]:
    """The output, and the blocked ones of all layers but the last, one after the other."""
    plan = call.plan
    y = torch.empty(plan.shape, dtype=torch.float32)
    kept = torch.empty(plan.kept, dtype=torch.float32)
    values = [link.values.contiguous() for link in call.links]
    biases = [None if link.bias is None else link.bias.contiguous() for link in call.links]
    none = [None] * len(values)
    links = _packed(call.links, values, biases, none, none)
    call.backend.chain_forward(links, plan.batch, plan.lanes, x.contiguous(), kept, y, plan.threads)
    return y, kept


def _packed(links: Sequence[Link], *tensors: Sequence[Tensor | None]) -> bytes:
    """The links as the kernels take them, with values, biases and the gradients of both; whoever calls keeps them."""
    found = []
    for link, *of_link in zip(links, *tensors, strict=True):
        pattern = link.pattern
        addresses = [0 if tensor is None else tensor.data_ptr() for tensor in of_link]
        found.append((pattern.data_ptr(), pattern.numel(), *addresses, link.relu))
    return pack_links(*found)


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, call, *parameters):
        y, kept = _forward(call, x)
        ctx.save_for_backward(x, kept, *parameters[: len(call.links)])
        ctx.call = call
        return y

    @staticmethod
    def backward(ctx, dy):
        call, (x, kept, *values) = ctx.call, ctx.saved_tensors
        n = len(call.links)
        want_x, _, *wanted = ctx.needs_input_grad
        if torch.is_grad_enabled() or not _as_it_was(call, dy, x, kept, values):
            return _layer_by_layer(call, dy, x, kept, values, want_x, wanted)
        dx = torch.empty(x.shape, dtype=torch.float32) if want_x else None
        dw, db = [], []
        for i, link in enumerate(call.links):
            dw.append(torch.empty_like(values[i]) if wanted[i] else None)
            db.append(torch.empty(link.out_features, dtype=torch.float32) if wanted[n + i] else None)
        plan, values = call.plan, [v.contiguous() for v in values]
        links = _packed(call.links, values, [None] * n, dw, db)
        given = x.contiguous(), dy.contiguous(), kept.contiguous()
        call.backend.chain_backward(links, plan.batch, plan.lanes, *given, dx, plan.threads)
        return dx, None, *dw, *db


# ``_Function.apply`` less its look for transforms, which ``is_plain`` has excluded.
_apply = super(torch.autograd.Function, _Function).apply  # type: ignore[attr-defined]


def _as_it_was(call: _Call, dy: Tensor, x: Tensor, kept: Tensor, values: Sequence[Tensor]) -> bool:
    """Whether nobody looks on, and nothing has another size or type than in the forward pass."""
    if not eager.is_plain(dy, x, kept, *values) or x.shape != call.x_shape:
        return False
    for tensor in (dy, x, kept, *values):  # called at every step: generators would take twice as long
        if tensor.dtype != torch.float32:
            return False
    for link, tensor, size in zip(call.links, values, call.sizes, strict=True):
        if tensor.numel() != size or is_watched(link.pattern):
            return False
    return True


def _layer_by_layer(
    call: _Call,
    dy: Tensor,
    x: Tensor,
    kept: Tensor,
    values: Sequence[Tensor],
    want_x: bool,
    wanted: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """The same gradients by the registered operators: they tell who watches, and refuse a second derivative."""
    n = len(call.links)
    inputs = [x, *_outputs(call, x, kept)]
    grads: list[Tensor | None] = [None] * (2 * n)
    dx = None
    for i in reversed(range(n)):
        below = want_x or any(wanted[:i]) or any(wanted[n : n + i])
        wants = below, wanted[i], wanted[n + i]
        if not any(wants):
            break
        link = call.links[i]
        found = torch.ops.startsparse.sparse_linear_backward(
            dy, inputs[i], values[i], link.pattern, None, wants
        )
        dx, grads[i], grads[n + i] = (grad if want else None for grad, want in zip(found, wants, strict=True))
        if i and dx is not None:
            dy = torch.ops.aten.threshold_backward(dx, inputs[i], 0) if call.links[i - 1].relu else dx
    return dx if want_x else None, None, *grads


def _outputs(call: _Call, x: Tensor, kept: Tensor) -> Iterator[Tensor]:
    """The row-major outputs of all layers but the last."""
    lanes, start = call.plan.lanes, 0
    tiles = -(-call.plan.batch // lanes)
    for link in call.links[:-1]:
        size = tiles * link.out_features * lanes
        blocked = kept[start : start + size].view(tiles, link.out_features, lanes)
        yield torch.ops.startsparse.from_blocked(blocked, call.plan.batch).view(
            *x.shape[:-1], link.out_features
        )
        start += size
