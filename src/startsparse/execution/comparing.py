"""Whether a traced module does what its ``forward`` does: both are run on an example, and all that comes out compared."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .fused import fused_blocks
from .traces import Trace

_SMALL = 1e-5  # of the largest gradient: what rounding makes of one that is zero (a bias before a norm)
_TRACED = 1e-5  # the same operations in the same order: no more than what threads may change
_FUSED = 2e-2  # the same but for rounding, which may decide about a ReLU


def arguments(example_input: Any) -> tuple[tuple, dict]:
    """Positional and named arguments of a model, from one input, a tuple or list of them, or a mapping."""
    if isinstance(example_input, Mapping):
        return (), dict(example_input)
    return (tuple(example_input), {}) if isinstance(example_input, tuple | list) else ((example_input,), {})


def difference(model: nn.Module, traces: Mapping[str, Trace], example_input: Any) -> str:
    """How a model differs if some of its modules run by traces, or an empty string. The model is not changed.

    Outputs, gradients and buffers are compared in training, outputs in evaluation; first with the layers one by one,
    then with what runs as one operation.

    Args:
        model: as it is, without traces.
        traces: module name -> its trace.
        example_input: for the model.
    """
    for training in sorted({training for trace in traces.values() for training in trace.ways}, reverse=True):
        was = fused_blocks(False)
        try:
            expected = _results(model, {}, example_input, training)
            probes = {name: replace(trace, always=True, aside=Counter()) for name, trace in traces.items()}
            traced = _results(model, probes, example_input, training)
            _ = fused_blocks(True)
            together = _results(model, probes, example_input, training)
        finally:
            _ = fused_blocks(was)
        for name, probe in probes.items():
            if probe.aside or not probe.used:
                why = next(iter(probe.aside), "the model does not call it with the example input")
                return f"{name or 'the model'} did not run by its trace: {why}"
        for found, within, how in ((traced, _TRACED, "traced"), (together, _FUSED, "run as one operation")):
            if told := _compare(expected, found, within):
                return f"{told} when it is {how}, with training={training}"
    return ""


def run(model: nn.Module, example_input: Any) -> Any:
    """The model's output."""
    args, kwargs = arguments(example_input)
    return model(*args, **kwargs)


def _results(
    model: nn.Module, traces: Mapping[str, Trace], example_input: Any, training: bool
) -> dict[str, Any]:
    """All that comes out of a copy of a model: outputs, gradients of everything, buffers."""
    twin = copy.deepcopy(model).train(training)
    for name, trace in traces.items():
        trace.turn(twin.get_submodule(name))
    leaves: list[Tensor] = []
    with torch.random.fork_rng(devices=[]), torch.set_grad_enabled(training):
        _ = torch.manual_seed(0)
        given = pytree.tree_map(lambda value: _fresh(value, leaves, training), example_input)
        outputs = pytree.tree_leaves(run(twin, given))
        wanted = [value for value in outputs if isinstance(value, Tensor) and value.requires_grad]
        if wanted:
            torch.autograd.backward(wanted, [torch.randn_like(value) for value in wanted])
    found: dict[str, Any] = {f"output {i}": value for i, value in enumerate(outputs)}
    found |= {f"the gradient of {key}": p.grad for key, p in twin.named_parameters()}
    found |= {f"the gradient of input {i}": leaf.grad for i, leaf in enumerate(leaves)}
    return found | dict(twin.named_buffers())


def _fresh(value: Any, leaves: list[Tensor], training: bool) -> Any:
    """An input that nobody else has, whose gradient can be asked for."""
    if not isinstance(value, Tensor):
        return copy.deepcopy(value)
    fresh = value.detach().clone()
    if training and fresh.is_floating_point():
        leaves.append(fresh.requires_grad_())
        return fresh.clone()
    return fresh


def _compare(expected: Mapping[str, Any], found: Mapping[str, Any], within: float) -> str:
    """The first thing that differs by more than a share of its size, in words."""
    if expected.keys() != found.keys():
        return "it gives another number of outputs"
    tensors = {name: value.detach() for name, value in expected.items() if isinstance(value, Tensor)}
    sizes = {name: tensor.nan_to_num().double().norm() for name, tensor in tensors.items()}
    largest = max(
        (float(size) for name, size in sizes.items() if name.startswith("the gradient")), default=0.0
    )
    for name, want in expected.items():
        have = found[name]
        if not isinstance(want, Tensor) or not isinstance(have, Tensor):
            if type(want) is not type(have) or (not isinstance(want, Tensor) and want != have):
                return f"{name} is {type(have).__name__}, not {type(want).__name__}, or another"
            continue
        if want.shape != have.shape or want.dtype != have.dtype:
            return f"{name} is {tuple(have.shape)}, not {tuple(want.shape)}"
        if not torch.equal(want.isnan(), have.isnan()):
            return f"{name} is NaN elsewhere"
        off = (want - have).detach().nan_to_num().double().norm()
        if not off <= within * sizes[name] + _SMALL * largest:
            return f"{name} differs by {float(off / sizes[name]):.2g} of its norm"
    return ""
