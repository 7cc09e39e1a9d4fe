"""Before training: which layers, how many weights, what memory and FLOPs, and what looks wrong."""

from __future__ import annotations

import copy
import math
import warnings
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from .attaching import as_optimizers
from .costs import (
    dense_gradients,
    inference_flops,
    sparse_training_bytes,
    training_bytes,
    training_flops,
    uses_per_sample,
)
from .draw import Drawn
from .execution.auto import faster
from .execution.choice import Choice, choose
from .execution.interface import FirstSite
from .execution.modules import refuse_sparse
from .execution.power import check as check_power
from .layers import Layer, find, left_dense
from .methods import Method
from .methods.base import GLOBAL, Views, check_attachable, layer_counts
from .planned import Flops, Plan, PlannedLayer
from .scalars import as_plain
from .schedules import LengthMissing, run_length
from .sources import Source, or_dense, refuse_locked
from .topology import first_site

EXAMPLE_STEPS = 10_000  # of a run whose length nobody gave


def plan(
    model: nn.Module,
    method: Method,
    *,
    source: Source | None = None,
    layers: str | Sequence[str] | None = None,
    total_steps: int | None = None,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
    example_input: Any = None,
    execution: str = "masked",
    power: float = 1.0,
) -> Plan:
    """What ``attach`` would do, without touching the model.

    Args:
        model, method, source, layers, execution, power: as for ``attach``.
        total_steps: as for ``attach``; a method whose schedule is in parts of the run is planned, and a warning says
            so, as for 10,000 steps without it, where ``attach`` refuses.
        optimizer: counted in the memory column: the state tensors it keeps per weight.
        example_input: a batch (tensor, tuple or dict of arguments); with it FLOPs are counted, and layers timed for
            ``execution="auto"``.

    Raises:
        ValueError: whatever else ``attach`` would refuse about model, method and source.

    Example:
        >>> import startsparse as ss
        >>> model = nn.Sequential(nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 10))
        >>> ss.plan(model, ss.Static(density=0.05)).num_final
        11910
    """
    check_attachable(method)
    if optimizer is not None:
        optimizer = as_optimizers(optimizer)
    power = as_plain(power)
    check_power(power, method)
    refuse_locked(source)
    source = or_dense(source)
    refuse_sparse(model)
    found = find(model, layers)
    supports = source.supports(found)
    sites = {name: first_site(layer, supports[name], method) for name, layer in found.items()}
    views = {name: site.view() for name, site in sites.items()}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        total_steps = _length(method, views, run_length(total_steps))
    starts = {name: _start_count(start.mask, sites[name]) for name, start in method.start(views).items()}
    sizes = {name: math.prod(layer.shape) for name, layer in found.items()}
    total, start_count = sum(sizes.values()), sum(starts.values())
    last = (total_steps or 10**9) - 1
    final_count = method.target(last, total, start_count, total_steps)
    finals = _final_counts(method, views, starts, total, start_count, final_count, total_steps)
    uses, batch = ({}, 0) if example_input is None else uses_per_sample(model, found, example_input)
    flops = None
    if uses:
        shares = {
            name: final_count * sizes[name] / total for name in found
        }  # where a ranking is still to decide
        ends = {name: shares[name] if count is None else float(count) for name, count in finals.items()}
        flops = _flops(method, ends, sizes, uses, batch, start_count, total_steps)
    num_states = _num_states(optimizer)
    choices = _choices(execution, model, found, starts, optimizer, example_input, method)
    rows = []
    for name, layer in found.items():
        has_source, final = views[name].source is not None, finals[name]
        held = (num_states or 0) + (power != 1)  # the gradients of weights beside those of their roots
        memory = training_bytes(layer.shape, layer.parameter.element_size(), held + method.hides, has_source)
        if choices[name].execution == "sparse":
            memory = sparse_training_bytes(starts[name], held)
        counted = None if final is None or not uses else 2 * final * uses[name]
        counts = (sizes[name], views[name].capacity, starts[name], final)
        rows.append(PlannedLayer(name, layer.shape, *counts, memory, counted, choices[name].execution))
    everything = sum(parameter.numel() for parameter in model.parameters())
    notes = [str(warning.message) for warning in said] + _warnings(model, found, rows, uses)
    if num_states is None:
        notes.append("the optimizer's state could not be found out and is not in the memory column")
    reasons = {
        name: f"{choice.execution}: {choice.reason}" for name, choice in choices.items() if choice.reason
    }
    elements = {name: layer.parameter.element_size() * sizes[name] for name, layer in found.items()}
    return Plan(
        method.name,
        source.name,
        total,
        start_count,
        final_count,
        everything,
        rows,
        flops,
        reasons,
        notes,
        dense_gradients(
            method,
            sum(elements.values()),
            total_steps,
            views,
            starts,
            all(choice.execution == "masked" for choice in choices.values()),
        ),
    )


def _length(method: Method, views: Views, total_steps: int | None) -> int | None:
    """Steps of the run, checked; one of ``EXAMPLE_STEPS`` where none are given and the method counts in parts of a run."""
    if total_steps is None:
        try:
            method.check(views, None)
        except LengthMissing:
            warnings.warn(
                f"planned as for a run of {EXAMPLE_STEPS:,} steps: give total_steps= for yours", stacklevel=2
            )
            total_steps = EXAMPLE_STEPS
        else:
            return None
    method.check(views, total_steps)
    return total_steps


def _flops(
    method: Method,
    ends: dict[str, float],
    sizes: dict[str, int],
    uses: dict[str, float],
    batch: int,
    start_count: int,
    total_steps: int | None,
) -> Flops:
    """Training is averaged over the run; while the count still falls, layers are taken to hold their final shares."""
    total, final_count = sum(sizes.values()), sum(ends.values())
    dense_steps, average = None, final_count
    if total_steps is not None:
        dense_steps = method.dense_gradient_steps(total_steps)
        steps = range(0, total_steps, max(1, total_steps // 1000))
        average = sum(method.target(s - 1, total, start_count, total_steps) for s in steps) / len(steps)
    mean = {name: count * average / max(final_count, 1) for name, count in ends.items()}
    share = dense_steps / total_steps if dense_steps and total_steps else 0.0
    dense = inference_flops(sizes, uses)
    training = training_flops(mean, sizes, uses, share)
    if method.probes and total_steps is not None:
        updates = sum(method.due(step, total_steps) for step in range(total_steps))
        training += method.probes * updates / total_steps * training_flops(mean, sizes, uses, 1.0)
    return Flops(inference_flops(ends, uses), training, dense, 3 * dense, dense_steps, batch)


def _choices(
    execution: str,
    model: nn.Module,
    found: dict[str, Layer],
    starts: dict[str, int],
    optimizer,
    example_input: Any,
    method: Method,
) -> dict[str, Choice]:
    optimizers = [] if optimizer is None else as_optimizers(optimizer)
    choices = choose(execution, model, found, optimizers, method)
    if execution == "auto":
        able = {name: found[name] for name, choice in choices.items() if choice.execution == "sparse"}
        choices |= faster(model, able, starts, example_input)
    return choices


def _start_count(mask: Any, site: FirstSite) -> int:
    if mask is None:
        return site.num_active
    if isinstance(mask, Drawn):
        if mask.count is not None:
            return mask.count
        inside = site.source.cpu().numpy() if isinstance(site.source, torch.Tensor) else None
        return int(mask.mask(inside).sum())
    return int(mask.sum())


def _final_counts(
    method, views, starts, total, start_count, final_count, total_steps
) -> dict[str, int | None]:
    """Live weights per layer at the end, None where a ranking during training decides."""
    target = method.target(-1, total, start_count, total_steps)
    if method.due(-1, total_steps) and not method.needs and target == final_count:
        changes = method.update(views, -1, target, total_steps)
        return {name: views[name].num_active - len(changes[name].dropped) for name in views}
    if final_count == start_count and not method.needs and not method.moves_across_layers:
        return dict(starts)
    if method.distribution == GLOBAL or method.moves_across_layers:
        return dict.fromkeys(views)
    return dict(layer_counts(method.rule(views), views, final_count / total, capacity=starts))


def _num_states(optimizer: Optimizer | Sequence[Optimizer] | None) -> int | None:
    """State tensors of a weight's shape that an optimizer keeps; None if it cannot be found out.

    A copy of the optimizer takes one step on a weight of its own.
    """
    if optimizer is None:
        return 0
    first = optimizer if isinstance(optimizer, Optimizer) else next(iter(optimizer))
    probe = nn.Parameter(torch.ones(2, 3))
    probe.grad = torch.ones(2, 3)
    shell = copy.copy(first)
    shell.state = defaultdict(dict)
    shell.param_groups = [{**first.param_groups[0], "params": [probe]}]
    try:
        _ = shell.step()
    except (AttributeError, TypeError, RuntimeError, ValueError):
        return None
    return sum(isinstance(t, torch.Tensor) and t.shape == probe.shape for t in shell.state[probe].values())


def _warnings(model, found, rows, uses) -> list[str]:
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
    return notes
