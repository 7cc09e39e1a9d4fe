"""Probe batches: gradients for an update alone, of batches that nothing else learns from."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import nn

from .execution.interface import KEPT

if TYPE_CHECKING:
    from .topology import Topology

PROBED = "probed"  # the memory that holds the step whose probes were made
EARLIER = (
    "gradient before probes"  # and the dense gradient of the steps before it, which may be of another scale
)


def probes(topology: Topology, model: nn.Module, step: int) -> Iterator[int]:
    """Counts the probe batches that the coming step asks for; see ``Sparsifier.probes``."""
    method, sites = topology.method, topology.sites.values()
    if not method.probes or not topology.due(step):
        return
    if any(site.has_gradient() for site in sites):
        raise RuntimeError(
            f"{method.name}: the {method.probes} probe batches of step {step} come too late: go through "
            "sparsifier.probes() before the step's own backward pass"
        )
    for site in sites:
        if KEPT in site.memory:
            site.memory[EARLIER] = site.memory.pop(KEPT)
    with _no_trace(model):
        for index in range(method.probes):
            yield index
            if not any(site.has_gradient() for site in sites):
                raise RuntimeError(
                    f"{method.name}: probe {index} of step {step} brought no gradient to a sparse layer: call "
                    "loss.backward() for a batch in each round of sparsifier.probes()"
                )
            finite = all(site.gradient_is_finite() for site in sites)
            if not finite:
                warnings.warn(
                    f"{method.name}: the gradient of probe {index} of step {step} is not finite: it is left out",
                    stacklevel=3,
                )
            for site in sites:
                if finite:
                    site.add_kept_gradient(1.0)
                    site.keep_gradient()
                site.forget_gradient()
            for parameter in model.parameters():
                parameter.grad = None
    for site in sites:
        site.memory[PROBED] = torch.tensor(step)


def check(topology: Topology, step: int) -> None:
    """Refuse an update whose probes were not made.

    Raises:
        RuntimeError: says what the loop lacks.
    """
    wanted = topology.method.probes
    if wanted and any(int(site.memory.get(PROBED, -1)) != step for site in topology.sites.values()):
        raise RuntimeError(
            f"{topology.method.name}(probes={wanted}) got no probe batches before the update at step {step}: write "
            "`for _ in sparsifier.probes(): loss_fn(model(x), y).backward()` with other batches before the step's own "
            "backward pass"
        )


@contextlib.contextmanager
def _no_trace(model: nn.Module) -> Iterator[None]:
    """Gradients, buffers and random generators are as before afterwards."""
    gradients = [(p, None if p.grad is None else p.grad.clone()) for p in model.parameters()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    for parameter, _ in gradients:
        parameter.grad = None
    devices = list({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
