"""A module's ``forward`` as a graph, with what it depended on, or the reason why there can be none.

Tracing runs ``forward`` once on stand-ins for tensors. Whatever Python decides on its way is decided for good, so what
could decide otherwise next time is looked for: random numbers, attributes that ``forward`` sets, tensors it makes,
contexts it enters; and the attributes that it reads are noted, to be compared before each use (``guard``).
"""

from __future__ import annotations

import copy
import inspect
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from . import in_place
from .fused import unobserved
from .guard import changed
from .modules import is_sparse
from .turned import turn_back

_OF_ANY_MODULE = (frozenset(vars(nn.Module())) | frozenset(dir(nn.Module))) - {"training"}
_saved_tensor_hooks: Callable[[bool], Any] = getattr(
    getattr(torch._C, "_autograd", None), "_top_saved_tensors_default_hooks", lambda _: None
)


class Refused(Exception):
    """A module is not to be traced; the words say why."""


@dataclass(frozen=True)
class Traced:
    """What tracing found.

    Attributes:
        graph: its module names are from the traced module on; layers and modules of torch are single nodes.
        inputs: names of the arguments it is called with; others keep their defaults.
        entered: modules whose ``forward`` is part of the graph ("" is the traced one itself).
        called: modules that are called as they are.
        reads: module -> the attributes that were read of it.
    """

    graph: fx.Graph
    inputs: tuple[str, ...]
    entered: frozenset[str]
    called: frozenset[str]
    reads: Mapping[str, frozenset[str]]


def trace(module: nn.Module, training: bool) -> Traced:
    """The graph of a module's ``forward`` in a mode. The module is not changed: a copy is traced.

    A module inside that cannot be traced is called as it is.

    Raises:
        Refused: it cannot be traced, or not without a doubt.
    """
    inputs = _inputs(module)
    leaves: frozenset[str] = frozenset()
    while True:
        twin = copied(module)
        tracer = _Tracer(leaves, inputs)
        try:
            return _traced(tracer, twin.train(training), module)
        except Exception as error:
            if tracer.failed:
                leaves |= {tracer.failed}
            elif isinstance(error, Refused):
                raise
            else:
                raise Refused(f"{type(error).__name__}: {_first_line(error)}") from error


def is_leaf(module: nn.Module, name: str) -> bool:
    """Whether a module is called as it is: those of torch, sparse layers, and those that somebody looks at."""
    if is_sparse(module) or (name and not unobserved(module)) or hasattr(module, "_orig_mod"):
        return True
    return type(module).__module__.startswith(("torch.nn", "torch.ao.nn")) and not isinstance(
        module, nn.Sequential
    )


def _traced(tracer: _Tracer, twin: nn.Module, module: nn.Module) -> Traced:
    reads: dict[str, set[str]] = {}
    for name, one in twin.named_modules():
        if not is_sparse(one):
            reads[name] = set()
            _spy(one, name, reads[name])
    generators = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            before = _state(*twin.modules())
            graph = tracer.trace(twin)
            _check_state(before, *twin.modules())
    finally:
        random.setstate(generators[0])
        np.random.set_state(generators[1])
    for name, names in reads.items():
        for attribute in sorted(names):
            if changed(module.get_submodule(name), twin.get_submodule(name), attribute):
                raise Refused(f"it changes {name + '.' if name else ''}{attribute} as it runs")
    try:
        in_place.check(graph, dict(twin.named_modules()))
    except ValueError as error:
        raise Refused(str(error)) from error
    entered = frozenset(
        {"", *tracer.entered, *(name for name, names in reads.items() if names)} - tracer.called
    )
    read = {name: frozenset(names) for name, names in reads.items() if names}
    return Traced(graph, tuple(tracer.inputs), entered, frozenset(tracer.called), read)


class _Tracer(fx.Tracer):
    def __init__(self, leaves: Iterable[str], inputs: Iterable[str]):
        super().__init__()
        self.leaves, self.inputs = frozenset(leaves), tuple(inputs)
        self.failed = ""
        self.entered: set[str] = set()
        self.called: set[str] = set()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name in self.leaves or is_leaf(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Callable, args: tuple, kwargs: dict) -> Any:
        name = self.path_of_module(m)
        leaf = self.is_leaf_module(m, name)
        (self.called if leaf else self.entered).add(name)
        try:
            before = () if leaf else _state(m)
            result = super().call_module(m, forward, args, kwargs)
            if not leaf:
                _check_state(before, m)
            return result
        except Exception:
            if not leaf and not self.failed:
                self.failed = name
            raise

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if _context() != (True, False, False, None):
            raise Refused(
                "it computes under no_grad, autocast, checkpointing or the like, which a trace does not see"
            )
        return super().create_node(*args, **kwargs)

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, Tensor) and not isinstance(a, nn.Parameter):
            known = any(a is buffer for buffer in self.root.buffers()) or a in self.tensor_attrs
            if not known:
                raise Refused("it uses a tensor that is made as it runs: it would be the same for ever")
        return super().create_arg(a)

    def create_args_for_root(
        self, root_fn: Any, is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list]:
        proxies = [self.create_proxy("placeholder", name, (), {}) for name in self.inputs]
        return root_fn, [self.root, *proxies]


def _inputs(module: nn.Module) -> list[str]:
    """The arguments that a module's ``forward`` needs."""
    forward = type(module).forward
    if forward is nn.Module.forward or not isinstance(forward, FunctionType) or "forward" in module.__dict__:
        raise Refused("it has no forward of its own, or one that was replaced")
    _, *parameters = inspect.signature(forward).parameters.values()
    needed = [
        p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    if not needed:
        raise Refused("its forward takes no argument that it needs")
    if named := [p.name for p in needed if p.kind is p.KEYWORD_ONLY]:
        raise Refused(f"its forward needs {', '.join(named)} by name")
    return [p.name for p in needed]


def copied(module: nn.Module) -> nn.Module:
    """A copy of a module, of the class that it had, and likewise those inside.

    Raises:
        Refused: there is none.
    """
    try:
        twin = copy.deepcopy(module)
    except Exception as error:
        raise Refused(f"it cannot be copied: {_first_line(error)}") from error
    for one in twin.modules():
        turn_back(one)
    return twin


def _spy(module: nn.Module, name: str, reads: set[str]) -> None:
    """Note which attributes of a module are read, and let none be set."""
    kind = type(module)

    def __getattribute__(self: nn.Module, attribute: str) -> Any:
        if attribute not in _OF_ANY_MODULE and not attribute.startswith("__"):
            reads.add(attribute)
        return kind.__getattribute__(self, attribute)

    def __setattr__(self: nn.Module, attribute: str, value: Any) -> None:
        raise Refused(f"it sets {name}.{attribute} as it runs" if name else f"it sets {attribute} as it runs")

    seen = {"__getattribute__": __getattribute__, "__setattr__": __setattr__, "__module__": kind.__module__}
    module.__class__ = type(kind.__name__, (kind,), seen)


def _context() -> tuple:
    """What surrounds a computation and leaves no trace."""
    hooks = _saved_tensor_hooks(True)
    modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")
    return *modes, None if hooks is None else id(hooks[0])


def _state(*modules: nn.Module) -> tuple:
    """What running ``forward`` on stand-ins must leave as it is: random numbers, the modules' own tensors."""
    numbers = torch.get_rng_state().numpy().tobytes(), random.getstate(), np.random.get_state()[2]  # type: ignore[index]
    tensors = [t for module in modules for t in (*module._parameters.values(), *module._buffers.values())]
    return numbers, [None if tensor is None else (id(tensor), tensor._version) for tensor in tensors]


def _check_state(before: tuple, *modules: nn.Module) -> None:
    numbers, tensors = _state(*modules)
    if numbers != before[0]:
        raise Refused("it draws random numbers while it is traced: they would be the same for ever")
    if tensors != before[1]:
        raise Refused("it changes its own tensors in place")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0]
