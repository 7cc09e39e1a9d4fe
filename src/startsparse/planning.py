"""Before training: which layers, how many weights, what memory and FLOPs, and what looks wrong."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from .costs import inference_flops, training_bytes, training_flops, uses_per_sample
from .draw import Drawn
from .execution.masked import MaskedSite
from .layers import find, left_dense
from .methods import Method
from .methods.base import GLOBAL, layer_counts
from .sources import DenseSource, Source
from .tables import percent, size, table


@dataclass(frozen=True)
class PlannedLayer:
    """One layer of a plan. ``num_final`` is None where a ranking during training decides it."""

    name: str
    shape: tuple[int, ...]
    num_weights: int
    num_source: int
    num_start: int
    num_final: int | None
    training_bytes: int
    inference_flops: float | None


@dataclass(frozen=True)
class Plan:
    """What ``attach`` with the same arguments will do. ``print`` it, or take ``as_dict()``.

    Attributes:
        num_start, num_final: live weights when training begins and from the end of the method's schedule on.
        inference_flops, training_flops: of the sparse layers, for one sample, counted; training averaged over the
            run, dense-gradient steps included. None without ``example_input``.
        dense_inference_flops, dense_training_flops: the same of the dense net.
        warnings: what looks wrong; empty if nothing does.
    """

    method: str
    source: str
    num_weights: int
    num_start: int
    num_final: int
    num_parameters: int
    layers: list[PlannedLayer]
    inference_flops: float | None
    training_flops: float | None
    dense_inference_flops: float | None
    dense_training_flops: float | None
    dense_gradient_steps: int | None
    batch: int | None
    warnings: list[str] = field(default_factory=list)

    @property
    def density(self) -> float:
        """Final live weights over all weights of the sparse layers."""
        return self.num_final / self.num_weights

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self) | {"density": self.density}

    def __str__(self) -> str:
        def count(number: int | None) -> str:
            return "by ranking" if number is None else f"{number:,}"

        def flops(number: float | None) -> str:
            return "?" if number is None else f"{number:,.0f}"

        rows = []
        for r in self.layers:
            share = "?" if r.num_final is None else percent(r.num_final / r.num_weights)
            shape = "x".join(map(str, r.shape))
            rows.append(
                [r.name, shape, f"{r.num_weights:,}", count(r.num_start), count(r.num_final), share]
                + [size(r.training_bytes), flops(r.inference_flops)]
            )
        total_bytes = sum(r.training_bytes for r in self.layers)
        rows.append(
            [
                "all",
                "",
                f"{self.num_weights:,}",
                f"{self.num_start:,}",
                f"{self.num_final:,}",
                percent(self.density),
            ]
            + [size(total_bytes), flops(self.inference_flops)]
        )
        header = [
            "layer",
            "shape",
            "weights",
            "live at start",
            "live at end",
            "density",
            "training memory",
            "FLOPs/sample",
        ]
        of_all = (self.num_parameters - self.num_weights + self.num_final) / self.num_parameters
        lines = [
            f"{self.method} in {self.source} source",
            table(header, rows),
            f"density of the sparse layers {percent(self.density)}, of all parameters {percent(of_all)}",
            f"live values at the end: {size(4 * self.num_final)} of {size(4 * self.num_weights)} in float32",
        ]
        if (
            self.inference_flops is not None
            and self.dense_inference_flops
            and self.training_flops is not None
        ):
            steps = (
                f" ({self.dense_gradient_steps} steps with a dense gradient)"
                if self.dense_gradient_steps
                else ""
            )
            lines += [
                f"FLOPs of inference, one sample: {self.inference_flops:,.0f}, "
                f"{percent(self.inference_flops / self.dense_inference_flops)} of dense (counted)",
                f"FLOPs of a training step, batch {self.batch}: {self.training_flops * (self.batch or 1):,.0f}, "
                f"{percent(self.training_flops / (3 * self.dense_inference_flops))} of dense{steps} (counted)",
                "masked execution computes the dense FLOPs whatever is counted here",
            ]
        else:
            lines.append("FLOPs: give example_input= to count them")
        return "\n".join(lines + [f"warning: {warning}" for warning in self.warnings])


def plan(
    model: nn.Module,
    method: Method,
    *,
    source: Source | None = None,
    layers: str | Sequence[str] | None = None,
    total_steps: int | None = None,
    optimizer: Optimizer | None = None,
    example_input: Any = None,
) -> Plan:
    """What ``attach`` would do, without touching the model.

    Args:
        model, method, source, layers, total_steps: as for ``attach``.
        optimizer: counted in the memory column: the state tensors it keeps per weight.
        example_input: a batch (tensor, tuple or dict of arguments); with it FLOPs are counted.

    Raises:
        ValueError: whatever ``attach`` would refuse about model, method and source.

    Example:
        >>> import startsparse as ss
        >>> model = nn.Sequential(nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 10))
        >>> ss.plan(model, ss.Static(density=0.05)).num_final
        11910
    """
    source = source or DenseSource()
    found = find(model, layers)
    supports = source.supports(found)
    sites = {name: MaskedSite(layer, supports[name].mask()) for name, layer in found.items()}
    views = {name: site.view() for name, site in sites.items()}
    method.check(views, total_steps)
    starts = {name: _start_count(start.mask, sites[name]) for name, start in method.start(views).items()}
    sizes = {name: math.prod(layer.shape) for name, layer in found.items()}
    total, start_count = sum(sizes.values()), sum(starts.values())
    last = (total_steps or 10**9) - 1
    final_count = method.target(last, total, start_count, total_steps)
    finals = _final_counts(method, views, starts, total, start_count, final_count, total_steps)
    uses, batch = uses_per_sample(model, found, example_input) if example_input is not None else ({}, None)
    assumed = {n: finals[n] if finals[n] is not None else final_count * sizes[n] / total for n in finals}
    dense_steps = method.dense_gradient_steps(total_steps) if total_steps else None
    share = dense_steps / total_steps if total_steps and dense_steps is not None else 0.0
    average = _average_count(method, total, start_count, total_steps) if total_steps else final_count
    rows = [
        PlannedLayer(
            name,
            layer.shape,
            sizes[name],
            views[name].capacity,
            starts[name],
            finals[name],
            training_bytes(
                layer.shape,
                layer.parameter.element_size(),
                _states(optimizer),
                views[name].source is not None,
            ),
            2 * assumed[name] * uses[name] if uses and finals[name] is not None else None,
        )
        for name, layer in found.items()
    ]
    return Plan(
        method.name,
        source.name,
        total,
        start_count,
        final_count,
        sum(parameter.numel() for parameter in model.parameters()),
        rows,
        inference_flops(assumed, uses) if uses else None,
        training_flops(_scaled(assumed, average / max(final_count, 1)), sizes, uses, share) if uses else None,
        inference_flops(sizes, uses) if uses else None,
        3 * inference_flops(sizes, uses) if uses else None,
        dense_steps,
        batch,
        _warnings(model, method, found, rows, uses, total_steps),
    )


def _start_count(mask: Any, site: MaskedSite) -> int:
    if mask is None:
        return site.num_active
    if isinstance(mask, Drawn):
        inside = None if site.source is None else site.source.cpu().numpy()
        return mask.count if mask.count is not None else int(mask.mask(inside).sum())
    return int(mask.sum())


def _final_counts(
    method, views, starts, total, start_count, final_count, total_steps
) -> dict[str, int | None]:
    """Live weights per layer at the end, None where a ranking during training decides."""
    if method.due(-1, total_steps):
        target = method.target(-1, total, start_count, total_steps)
        changes = method.update(views, -1, target, total_steps)
        return {name: views[name].num_active - len(changes[name].dropped) for name in views}
    if final_count == start_count:
        return dict(starts)
    if method.distribution == GLOBAL:
        return dict.fromkeys(views)
    return dict(layer_counts(method.distribution, views, final_count / total, capacity=starts))


def _average_count(method, total: int, start_count: int, total_steps: int) -> float:
    """Live weights averaged over the steps of a run (over a thousand of them in a long one)."""
    steps = range(0, total_steps, max(1, total_steps // 1000))
    return sum(method.target(step - 1, total, start_count, total_steps) for step in steps) / len(steps)


def _scaled(counts: dict[str, float], factor: float) -> dict[str, float]:
    return {name: count * factor for name, count in counts.items()}


def _states(optimizer: Optimizer | None) -> int:
    """State tensors of a weight's shape that an optimizer keeps: found by letting a copy of it take one step."""
    if optimizer is None:
        return 0
    probe = nn.Parameter(torch.ones(2, 3))
    probe.grad = torch.ones(2, 3)
    options = {k: v for k, v in optimizer.param_groups[0].items() if k in optimizer.defaults}
    copy = type(optimizer)([probe], **options)
    copy.step()
    return sum(isinstance(t, torch.Tensor) and t.shape == probe.shape for t in copy.state[probe].values())


def _warnings(model, method, found, rows, uses, total_steps) -> list[str]:
    notes = []
    dense = left_dense(model, found)
    if dense:
        shown = ", ".join(f"{name} ({count:,})" for name, count in dense.items())
        notes.append(
            f"left dense, {sum(dense.values()):,} weights: {shown}; name them in layers= to make them sparse"
        )
    for row in rows:
        if row.num_final == 0:
            notes.append(f"{row.name} will have no live weight: no signal passes it")
        elif row.num_final == row.num_weights and row.num_weights:
            notes.append(f"{row.name} stays dense under this distribution")
    unused = [name for name in uses if uses[name] == 0]
    if unused:
        notes.append(f"not seen in the forward pass, FLOPs counted as 0: {', '.join(unused)}")
    window = getattr(method, "window", None)
    if window is not None and window(total_steps).last < window(total_steps).first:
        w = window(total_steps)
        notes.append(f"no update will happen: no multiple of {w.interval} lies in [{w.begin}, {w.end})")
    return notes
