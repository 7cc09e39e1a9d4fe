"""``fuse``: modules of one's own, traced, so that what is executed sparsely in them runs as one operation."""

from __future__ import annotations

import copy
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..kernels.block import available
from ..layers import check_module
from . import comparing
from .chains import join
from .guard import Guard
from .modules import is_sparse
from .noted import noting
from .program import Program, build
from .traces import Trace, trace_of
from .tracing import Refused, Traced, copied, is_leaf, trace
from .turned import turn_back


@dataclass(frozen=True)
class Fusion:
    """What ``fuse`` found; printed, it is a table.

    Attributes:
        model: as it was given.
        traced: the modules that run by a trace ("" is the model itself).
        refused: module -> why it does not.
        together: the sparse layers and norms that ran as one operation on the example, for each operation.
        alone: sparse layer -> why it ran by itself.

    Example:
        >>> print(fuse(nn.Sequential(nn.Linear(4, 4)), torch.randn(2, 4)))
        not traced     the model: no layer is executed sparsely: attach(..., execution='sparse') comes first
    """

    model: nn.Module
    traced: tuple[str, ...]
    refused: dict[str, str]
    together: tuple[tuple[str, ...], ...]
    alone: dict[str, str]

    @property
    def aside(self) -> dict[str, int]:
        """Why modules ran their own ``forward`` since, and how often."""
        found: dict[str, int] = {}
        for name in self.traced:
            at = trace_of(self.model.get_submodule(name))
            for why, times in at.aside.items() if at else ():
                found[why] = found.get(why, 0) + times
        return found

    def detach(self) -> nn.Module:
        """Let go of the model: every module runs its own ``forward`` again."""
        for name in self.traced:
            module = self.model.get_submodule(name)
            if trace_of(module) is not None:
                turn_back(module)
        join(self.model)
        return self.model

    def __str__(self) -> str:
        told = [("one operation", ", ".join(names)) for names in self.together]
        told += [("by itself", f"{name}: {why}") for name, why in self.alone.items()]
        told += [("not traced", f"{name or 'the model'}: {why}") for name, why in self.refused.items()]
        told += [("own forward", f"{times} times since: {why}") for why, times in self.aside.items()]
        return "\n".join(f"{how:<15}{what}" for how, what in told)


def fuse(model: nn.Module, example_input: Any) -> Fusion:
    """Let sparse layers of a model of one's own run together: convolutions with norms and ReLUs, linear layers in a row.

    In our models and in ``nn.Sequential`` that needs no call. What a ``forward`` of one's own does between its layers is
    found by tracing it (``torch.fx``), module by module, the outermost that can be traced. A trace has all that Python
    decides in it for good, so it is asked for, and not trusted: traced and plain run are compared on the example, in both
    modes (outputs, gradients, running statistics), and before each use the module is compared with what was traced; where
    anything is different, or somebody looks on (hooks, ``torch.compile``, autocast, transforms), its own ``forward`` runs.

    Modules, names, parameters and state_dict stay, as does ``isinstance``. A deep copy is fused as well; a pickled model
    is not, call ``fuse`` on it again. ``fused_blocks(False)`` turns it off, ``Fusion.detach`` ends it, as the sparsifier's
    own ``detach`` does.

    Args:
        model: attached with ``execution="sparse"`` or ``"auto"`` (or after ``sparsify_execution``).
        example_input: a batch as it will be trained with: an input, a tuple of them, or a mapping of named ones.

    Returns:
        What runs together, what does not, and why.

    Raises:
        TypeError: the model is no module.
        ValueError: it is compiled (fuse what ``torch.compile`` was given), or there is no example.

    Example:
        >>> import startsparse as ss
        >>> class Block(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.conv1, self.norm1 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        ...         self.conv2, self.norm2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        ...
        ...     def forward(self, x):
        ...         y = torch.relu(self.norm1(self.conv1(x)))
        ...         return torch.relu(self.norm2(self.conv2(y)) + x)
        >>> model = Block()
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> sparse = ss.attach(model, optimizer, ss.Static(density=0.2), execution="sparse")
        >>> ss.fuse(model, torch.randn(32, 8, 8, 8)).together
        (('conv1', 'norm1', 'conv2', 'norm2'),)
    """
    check_module(model)
    if hasattr(model, "_orig_mod") or model._compiled_call_impl is not None:
        raise ValueError(
            "the model is compiled: fuse the one that torch.compile was given, and do not compile it"
        )
    if example_input is None:
        raise ValueError("what is traced is compared on an example: give a batch as example_input")
    for module in model.modules():
        if trace_of(module) is not None:
            turn_back(module)
    join(model)
    sparse = {name: module for name, module in model.named_modules() if is_sparse(module)}
    obstacle = _obstacle(model, sparse)
    traces: dict[str, Trace] = {}
    refused: dict[str, str] = {"": obstacle} if obstacle else {}
    if not obstacle:
        _visit(model, "", traces, refused)
        _verify(model, traces, refused, example_input)
    for name, one in traces.items():
        one.turn(model.get_submodule(name))
    together, alone = _observe(model, example_input) if not obstacle else ((), {})
    for one in traces.values():
        one.aside.clear()
        one.used = 0
    for name in sparse:
        if not obstacle and name not in alone and not any(name in names for names in together):
            alone[name] = _why(name, traces, refused)
    return Fusion(model, tuple(traces), refused, together, alone)


def _obstacle(model: nn.Module, sparse: dict[str, nn.Module]) -> str:
    """Why nothing in a model can be fused, or an empty string."""
    if not sparse:
        return "no layer is executed sparsely: attach(..., execution='sparse') comes first"
    if not available():
        return "the kernels are not compiled on this machine"
    try:
        _ = copied(model)
    except Refused as error:
        return f"{error}, and is not compared"
    return ""


def _visit(module: nn.Module, name: str, traces: dict[str, Trace], refused: dict[str, str]) -> None:
    """Trace a module, or else those inside it."""
    if not any(map(is_sparse, module.modules())):
        return
    children = [key for key, _ in module.named_children()]
    if not is_leaf(module, ""):
        try:
            trained = trace(module, True)
        except Refused as error:
            refused[name] = str(error)
        else:
            children = sorted(trained.called)
            ways = {True: _way(module, trained, True)}
            with suppress(Refused):  # evaluation is then by its own forward
                ways[False] = _way(module, trace(module, False), False)
            if any(program.worth for program, _ in ways.values()):
                traces[name] = Trace(ways, len(trained.inputs))
    elif not isinstance(module, nn.ModuleList | nn.ModuleDict):
        return
    for key in children:
        _visit(module.get_submodule(key), f"{name}.{key}" if name else key, traces, refused)


def _way(module: nn.Module, traced: Traced, training: bool) -> tuple[Program, Guard]:
    return build(traced.graph, dict(module.named_modules())), Guard(module, traced, training)


def _verify(model: nn.Module, traces: dict[str, Trace], refused: dict[str, str], example_input: Any) -> None:
    """Give up traces that do something else than their modules do, and try those of the modules inside."""
    if not traces or not comparing.difference(model, traces, example_input):
        return
    for name in list(traces):
        told = comparing.difference(model, {name: traces[name]}, example_input)
        if told:
            del traces[name]
            refused[name] = told
            inside: dict[str, Trace] = {}
            for key, child in model.get_submodule(name).named_children():
                _visit(child, f"{name}.{key}" if name else key, inside, refused)
            new = {key: one for key, one in inside.items() if key not in traces}
            _verify(model, new, refused, example_input)
            traces |= new


def _observe(model: nn.Module, example_input: Any) -> tuple[tuple[tuple[str, ...], ...], dict[str, str]]:
    """What runs together and what alone in a forward pass of a training step, by name."""
    twin = copy.deepcopy(model).train()
    names = {module: name for name, module in twin.named_modules()}
    with noting() as notes, torch.random.fork_rng(devices=[]), torch.enable_grad():
        _ = comparing.run(twin, example_input)
    together = tuple(tuple(names[module] for module in modules) for modules in notes.together)
    seen = {name for modules in together for name in modules}
    return together, {names[m]: why for m, why in notes.alone.items() if m in names and names[m] not in seen}


def _why(layer: str, traces: dict[str, Trace], refused: dict[str, str]) -> str:
    """Why a layer that was not seen is called by itself."""
    owners = [name for name in (*traces, *refused) if not name or layer.startswith(f"{name}.")]
    nearest = max(owners, key=len, default="")
    if nearest in refused:
        return f"{nearest or 'the model'} is not traced"
    return "nothing that it could run with"
