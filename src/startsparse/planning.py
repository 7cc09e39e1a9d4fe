"""Before training: which layers, how many weights, what memory and FLOPs, and what looks wrong."""

from __future__ import annotations

import copy
import math
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from .costs import (
    Gradients,
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
from .execution.power import check as check_power
from .layers import Layer, find, left_dense
from .methods import Method
from .methods.base import GLOBAL, Views, check_attachable, layer_counts
from .scalars import as_plain
from .schedules import LengthMissing, run_length
from .sources import Source, or_dense, refuse_locked
from .tables import percent, size, table
from .topology import first_site

EXAMPLE_STEPS = 10_000  # of a run whose length nobody gave


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
    execution: str = "masked"

    def cells(self) -> list[str]:
        """The layer as a row of the plan's table."""
        end = "by ranking" if self.num_final is None else f"{self.num_final:,}"
        density = "?" if self.num_final is None else percent(self.num_final / self.num_weights)
        flops = "?" if self.inference_flops is None else f"{self.inference_flops:,.0f}"
        shape = "x".join(map(str, self.shape))
        counts = [f"{self.num_weights:,}", f"{self.num_start:,}", end, density]
        return [self.name, shape, *counts, size(self.training_bytes), flops, self.execution]


@dataclass(frozen=True)
class Flops:
    """FLOPs of the sparse layers for one sample, counted: a multiply and an add for each use of a live weight.

    Attributes:
        inference: one forward pass.
        training: forward and both backward products, averaged over the run, dense-gradient steps included.
        dense_inference, dense_training: the same of the dense net.
        dense_gradient_steps: steps of the run that compute the dense weight gradient, of whole layers whatever the source;
            None if its length is unknown.
        batch: samples of the example input.
    """

    inference: float
    training: float
    dense_inference: float
    dense_training: float
    dense_gradient_steps: int | None
    batch: int

    def __str__(self) -> str:
        steps = self.dense_gradient_steps
        among = f", {steps} steps of the run with a dense gradient" if steps else ""
        return (
            f"FLOPs of inference, one sample: {self.inference:,.0f}, "
            f"{_share(self.inference, self.dense_inference)} of dense (counted)\n"
            f"FLOPs of a training step, batch {self.batch}: {self.training * self.batch:,.0f}, "
            f"{_share(self.training, self.dense_training)} of dense{among} (counted)"
        )


@dataclass(frozen=True)
class Plan:
    """What ``attach`` with the same arguments will do. ``print`` it, or take ``as_dict()``.

    Attributes:
        num_start, num_final: live weights when training begins and from the end of the method's schedule on.
        num_parameters: of the whole model, biases and norms included.
        flops: None without ``example_input``.
        reasons: how a layer is executed, where there is something to say about it.
        warnings: what looks wrong; empty if nothing does.
        gradients: the dense gradients the method asks for; None if it asks for none.
    """

    method: str
    source: str
    num_weights: int
    num_start: int
    num_final: int
    num_parameters: int
    layers: list[PlannedLayer]
    flops: Flops | None
    reasons: dict[str, str]
    warnings: list[str]
    gradients: Gradients | None = None

    @property
    def density(self) -> float:
        """Final live weights over all weights of the sparse layers."""
        return self.num_final / self.num_weights

    @property
    def model_density(self) -> float:
        """Final live weights and all other parameters over all parameters of the model."""
        return (self.num_parameters - self.num_weights + self.num_final) / self.num_parameters

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self) | {"density": self.density, "model_density": self.model_density}

    def __str__(self) -> str:
        header = [
            "layer",
            "shape",
            "weights",
            "live at start",
            "live at end",
            "density",
            "memory",
            "FLOPs/sample",
            "execution",
        ]
        rows = [row.cells() for row in self.layers]
        memory = size(sum(row.training_bytes for row in self.layers))
        ends = [f"{self.num_weights:,}", f"{self.num_start:,}", f"{self.num_final:,}", percent(self.density)]
        rows.append(
            ["all", "", *ends, memory, "?" if self.flops is None else f"{self.flops.inference:,.0f}", ""]
        )
        lines = [
            f"{self.method} in {self.source} source",
            table(header, rows),
            f"density of the sparse layers {percent(self.density)}, of all parameters {percent(self.model_density)}",
            f"live values at the end: {size(4 * self.num_final)} of {size(4 * self.num_weights)} in float32",
            "FLOPs: give example_input= to count them" if self.flops is None else str(self.flops),
        ]
        if self.gradients is not None:
            lines.append(str(self.gradients))
        if self.flops is not None and any(row.execution == "masked" for row in self.layers):
            lines.append("masked execution computes the dense FLOPs, whatever is counted here")
        lines += [f"{name} runs {reason}" for name, reason in self.reasons.items()]
        return "\n".join(lines + [f"warning: {warning}" for warning in self.warnings])


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
    power = as_plain(power)
    check_power(power, method)
    refuse_locked(source)
    source = or_dense(source)
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
    optimizers = [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer or [])
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


def _share(part: float, whole: float) -> str:
    return percent(part / whole) if whole else "nothing"


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
