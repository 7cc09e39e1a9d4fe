"""``execution="auto"``: each layer is timed both ways at its real shapes, once a machine, and the faster one is used."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..costs import input_shapes
from ..draw import Drawn
from ..kernels import backend, cache_folder, has_node
from ..kernels.build import source_key
from ..layers import Layer
from .choice import Choice
from .modules import to_sparse

# Up to this density sparse execution was faster wherever it was measured; the rule where there is no example_input.
BREAK_EVEN = 0.2
_ROUNDS = 7


def faster(
    model: nn.Module, layers: Mapping[str, Layer], counts: Mapping[str, int], example_input: Any
) -> dict[str, Choice]:
    """The faster execution of every layer at its number of live weights.

    Args:
        model: run once on ``example_input`` to see the layers' input shapes.
        layers: those that could run sparse.
        counts: live weights of each.
        example_input: a batch of the size that will be used; None: decided by density alone.
    """
    densities = {name: counts[name] / layer.parameter.numel() for name, layer in layers.items()}
    if example_input is None:
        rule = f"no example_input to time with, so sparse up to density {BREAK_EVEN:g}"
        return {n: Choice("sparse" if densities[n] <= BREAK_EVEN else "masked", rule) for n in layers}
    shapes = input_shapes(model, layers, example_input)
    return {
        name: _choice(*measure(layer, counts[name], shapes[name]))
        if name in shapes
        else Choice("masked", "never called")
        for name, layer in layers.items()
    }


def _choice(masked: float, sparse: float) -> Choice:
    return Choice(
        "sparse" if sparse < masked else "masked",
        f"measured {1e3 * masked:.3g} ms masked, {1e3 * sparse:.3g} ms sparse",
    )


def measure(layer: Layer, count: int, shape: tuple[int, ...]) -> tuple[float, float]:
    """Seconds of a training step of a layer, masked-dense and sparse: medians, interleaved, remembered on disk.

    Args:
        layer: its geometry is used, its weights are not.
        count: live weights.
        shape: of the layer's input.
    """
    path = cache_folder() / "timings" / f"{_identity(layer, count, shape)}.json"
    try:
        masked, sparse = json.loads(path.read_text())
        if 0 < float(masked) < math.inf and 0 < float(sparse) < math.inf:
            return float(masked), float(sparse)
    except (OSError, ValueError, TypeError):
        pass  # nothing remembered, or nothing that can be read: measured now
    with torch.random.fork_rng(devices=[]):
        masked, sparse = _measure(layer, count, shape)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(f".{os.getpid()}.tmp")
        fresh.write_text(json.dumps([masked, sparse]))
        fresh.replace(path)
    except OSError:
        pass  # nowhere to remember it: it will be measured again
    return masked, sparse


def _identity(layer: Layer, count: int, shape: tuple[int, ...]) -> str:
    module = layer.module
    geometry = [getattr(module, key, None) for key in ("stride", "padding", "dilation", "groups")]
    share = f"{count / layer.parameter.numel():.2g}"
    machine = [platform.machine(), _processor(), torch.get_num_threads(), torch.__version__]
    computes = [backend().name, source_key(), has_node()]
    parts = [type(module).__name__, layer.shape, geometry, shape, share, *machine, *computes]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:24]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def _measure(layer: Layer, count: int, shape: tuple[int, ...]) -> tuple[float, float]:
    masked, sparse = _copy(layer.module), _copy(layer.module)
    size = layer.parameter.numel()
    positions = torch.from_numpy(Drawn("exact", 0, "timing", size, count=count).positions())
    _ = to_sparse(sparse, layer.shape, positions, torch.randn(count, dtype=torch.float32))
    x = torch.randn(shape, dtype=torch.float32)
    times: tuple[list[float], list[float]] = ([], [])
    for _round in range(_ROUNDS + 2):
        for module, seconds in zip((masked, sparse), times, strict=True):
            seconds.append(_step(module, x))
    return statistics.median(times[0][2:]), statistics.median(times[1][2:])


def _copy(module: nn.Module) -> nn.Module:
    bare = copy.copy(module)
    bare._parameters = {
        k: None if p is None else nn.Parameter(torch.randn_like(p)) for k, p in module._parameters.items()
    }
    bare._buffers, bare._forward_hooks, bare._forward_pre_hooks = (
        {},
        type(module._forward_hooks)(),
        type(module._forward_pre_hooks)(),
    )
    return bare


def _step(module: nn.Module, x: Tensor) -> float:
    x = x.detach().requires_grad_()
    for parameter in module.parameters():
        parameter.grad = None
    start = time.perf_counter()
    y = module(x)
    y.backward(y.detach())
    return time.perf_counter() - start
