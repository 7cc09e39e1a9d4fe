"""The one stateful object: binds a method to a model, its optimizers and the clock."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from . import state as saved
from .draw import Drawn
from .execution.choice import EXECUTIONS, choose
from .execution.hooks import LoadHook, StepHooks, attached_to, claim, release
from .execution.interface import Site
from .layers import find
from .methods import Method
from .names import nearest, plain
from .report import Report, build_report
from .sources import DenseSource, Source, describe
from .topology import Topology


def attach(
    model: nn.Module,
    optimizer: Optimizer | Sequence[Optimizer],
    method: Method,
    *,
    source: Source | None = None,
    total_steps: int | None = None,
    layers: str | Sequence[str] | None = None,
    execution: str = "masked",
    data: Any = None,
    loss_fn: Any = None,
    example_input: Any = None,
) -> Sparsifier:
    """Make a model sparse now and keep it sparse while it is trained; the training loop does not change.

    The model stays the plain module it was: same parameters, same state_dict keys, nothing wrapped. Gradients are
    masked where they arrive, inactive weights are exactly zero after every optimizer step, and the method's topology
    changes happen after the steps it is due at.

    Args:
        model: any module, also under DistributedDataParallel or torch.compile.
        optimizer: the optimizer, or several; the first is the clock.
        method: what decides which weights live, e.g. ``ss.RigL(density=0.05)``.
        source: where weights may live, e.g. ``ss.RandomSource(density=0.3)``; default: everywhere.
        total_steps: optimizer steps of the run; needed where a schedule is a fraction of it.
        layers: names or globs of the weights to be sparse, ``!name`` excludes; default: every Linear, convolution
            and attention projection weight.
        execution: "masked" (dense storage and compute, zeros in place).
        data, loss_fn, example_input: for methods that need passes of their own.

    Returns:
        The ``Sparsifier``. Nothing of it has to be called in the loop.

    Raises:
        ValueError: an impossible density, an unknown layer, a weight that no optimizer updates, or a model that is
            attached already. The model is untouched then.

    Example:
        >>> import startsparse as ss
        >>> model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 3))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> sparse = ss.attach(model, optimizer, ss.SET(density=0.2, update_interval=2), total_steps=8)
        >>> for _ in range(8):
        ...     model(torch.randn(4, 20)).square().mean().backward()
        ...     optimizer.step()
        ...     optimizer.zero_grad()
        >>> sparse.density, sparse.target_count
        (0.2, 138)
    """
    optimizers = _optimizers(optimizer)
    if not isinstance(method, Method):
        raise TypeError(f"method must be a method such as ss.RigL(density=0.05), got {method!r}")
    if execution not in EXECUTIONS:
        raise ValueError(f"unknown execution {execution!r}: {nearest(str(execution), EXECUTIONS)}")
    if isinstance(total_steps, bool) or not isinstance(total_steps, int | None) or (total_steps or 1) < 1:
        raise ValueError(f"total_steps must be an int >= 1 or None, got {total_steps!r}")
    unused = {"data": data, "loss_fn": loss_fn, "example_input": example_input}
    for name in [name for name, value in unused.items() if value is not None]:
        warnings.warn(f"{method.name} makes no passes of its own: {name}= is not used", stacklevel=2)
    return Sparsifier(model, optimizers, method, source or DenseSource(), total_steps, layers, execution)


class Sparsifier:
    """What ``attach`` returns: the masks, the clock and the method's progress.

    Attributes:
        model: the model as it was given.
        method, source: what decides where weights live.
        step: optimizer steps done so far (skipped ones, as after an overflow, do not count).
        total_steps: length of the run, or None.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: list[Optimizer],
        method: Method,
        source: Source,
        total_steps: int | None,
        layers: str | Sequence[str] | None,
        execution: str,
    ):
        self.model, self.method, self.source, self.total_steps = model, method, source, total_steps
        self.step = 0
        self._optimizers = optimizers
        self._layers = find(model, layers)
        for name, layer in self._layers.items():
            if attached_to(layer.parameter):
                raise ValueError(
                    f"{name} is attached to a sparsifier already: call detach() on that one first"
                )
        _check_optimizers(self._layers, optimizers)
        self.execution = choose(execution, model, self._layers, optimizers)
        self._topology = Topology(self._layers, method, source, total_steps, optimizers)
        self._connect()

    def _connect(self) -> None:
        """From here on the model is changed: weights go onto their masks, hooks are set."""
        self._topology.begin(
            [name for name, choice in self.execution.items() if choice.execution == "sparse"]
        )
        claim(self, [site.parameter for site in self._sites.values()])
        owners = {id(layer.module): layer.module for layer in self._layers.values()}
        hook = LoadHook(weakref.ref(self))
        self._handles = [module.register_load_state_dict_post_hook(hook) for module in owners.values()]
        self._handles += [
            handle for optimizer in self._optimizers for handle in StepHooks.register(optimizer, self)
        ]
        self._finalizer = weakref.finalize(self, _disconnect, list(self._sites.values()), self._handles)
        self._topology.capture(0)

    # -- what can be read --------------------------------------------------------------------------------------

    @property
    def _sites(self) -> dict[str, Site]:
        return self._topology.sites

    @property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: layer.shape for name, layer in self._layers.items()}

    @property
    def masks(self) -> dict[str, Tensor]:
        """Parameter name -> bool tensor of the weight's shape, True = active. Do not write to them."""
        return {name: site.mask for name, site in self._sites.items()}

    @property
    def source_masks(self) -> dict[str, Tensor]:
        """Parameter name -> bool tensor of the positions that may live."""
        return {
            name: torch.ones(site.shape, dtype=torch.bool)
            if site.source is None
            else site.source.view(site.shape)
            for name, site in self._sites.items()
        }

    @property
    def drawn(self) -> dict[str, Drawn]:
        """Parameter name -> draw, for the masks that are exactly a draw and so cost only a seed."""
        return dict(self._topology.drawn)

    @property
    def density(self) -> float:
        """Live weights over all weights of the sparse layers."""
        return self._topology.num_active / self._topology.num_weights

    @property
    def target_count(self) -> int:
        """Live weights scheduled for now."""
        return self._topology.target(self.step - 1)

    @property
    def phase(self) -> str:
        """What the method is doing: "static", "scoring", "pruning", "exploring" or "fixed"."""
        return self.method.phase(self.step, self.total_steps)

    def describe(self) -> dict[str, Any]:
        """Method, hyper-parameters and source as plain data."""
        method = {"name": self.method.name} | self.method.hyper_parameters()
        return {"method": method, "source": describe(self.source), "total_steps": self.total_steps}

    def report(self) -> Report:
        """Where the weights live now, per layer and in all; prints as a table."""
        return build_report(self, self._layers, self._topology)

    def dense_state_dict(self) -> dict[str, Tensor]:
        """The model's state_dict under plain keys, zeros in place, whatever executes the layers."""
        state = {plain(name): value for name, value in self.model.state_dict().items()}
        for name, site in self._sites.items():
            if site.execution == "sparse":
                state[name] = site.dense_weight()
                del state[f"{name.removesuffix('weight')}positions"]
        return state

    @torch.no_grad()
    def apply_to(self, model: nn.Module) -> None:
        """Zero the inactive weights of another copy of the model, e.g. of an average of its weights."""
        parameters = {plain(name): parameter for name, parameter in model.named_parameters()}
        for name, site in self._sites.items():
            if name not in parameters:
                raise ValueError(f"the model has no parameter {name!r}: {nearest(name, list(parameters))}")
            if parameters[name].shape == site.shape:  # a sparse copy has nothing to be zeroed
                parameters[name].masked_fill_(~site.mask.to(parameters[name].device), 0)

    # -- state -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on as if never stopped, beside the model's and the optimizers' own states.

        Plain data and tensors only, so ``torch.load(weights_only=True)`` reads it. Masks that still are a draw are
        stored as their seed and a hash, others as one bit a weight.
        """
        topology = self._topology
        return {
            "format": saved.FORMAT,
            "describe": self.describe(),
            "step": self.step,
            "start_count": topology.start_count,
            "num_updates": topology.num_updates,
            "num_moved": topology.num_moved,
            "masks": saved.pack_masks(
                {n: s.positions() for n, s in self._sites.items()}, topology.drawn, self._shapes
            ),
            "sources": saved.pack_sources(
                {n: s.source for n, s in self._sites.items()}, topology.source_drawn
            ),
            "gradients": {n: s.gradient_state() for n, s in self._sites.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state_dict()``; before or after the model's own ``load_state_dict``, in any order.

        Raises:
            ValueError: the state is of another method, source, set of layers or format, or is damaged. Nothing has
                changed then.
        """
        saved.check(state, self.describe(), self._shapes)
        positions, drawn = saved.unpack_masks(state["masks"], self._shapes)
        sources = saved.unpack_sources(state["sources"], self._shapes)
        for name, site in self._sites.items():
            site.restore(positions[name], sources[name], state["gradients"][name])
        self.step = int(state["step"])
        topology = self._topology
        topology.drawn, topology.start_count = drawn, int(state["start_count"])
        topology.num_updates, topology.num_moved = int(state["num_updates"]), int(state["num_moved"])
        topology.capture(self.step)

    def detach(self) -> nn.Module:
        """Let go of model and optimizers: plain modules and zeros are left, nothing keeps the zeros any more."""
        _ = self._finalizer()
        for site in self._sites.values():
            site.release(self._optimizers)
        return self.model

    # -- the clock; called by the hooks ------------------------------------------------------------------------

    def _before_step(self, optimizer: Optimizer, has_closure: bool, overflow: bool) -> bool:
        """Returns whether the optimizer must leave everything as it is (a method's update replaces the step)."""
        for name, site in self._sites.items():
            if site.layer.parameter is not site.parameter:
                raise RuntimeError(
                    f"{name} was replaced after attach(): its mask would be lost. Detach before replacing a "
                    "parameter, then attach again"
                )
        if overflow or not self._topology.due(self.step):
            return False
        if self.method.needs_step_gradient and optimizer is self._optimizers[0]:
            if has_closure:  # the gradient comes inside the step: remember the weights it is taken at
                self._topology.each(Site.remember_weight)
            else:
                self._topology.update(self.step)
        if self.method.skip_step_on_update and has_closure:
            raise RuntimeError("skip_step_on_update cannot replace a step that is given a closure")
        return self.method.skip_step_on_update

    def _after_step(self, optimizer: Optimizer, has_closure: bool, overflow: bool) -> None:
        if overflow:
            self._topology.each(Site.forget_gradient)
            return
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        for site in self._sites.values():
            if id(site.parameter) in held:
                site.remask()
        if optimizer is not self._optimizers[0]:
            return
        if self._topology.due(self.step) and (has_closure or not self.method.needs_step_gradient):
            self._topology.update(self.step)
        self.step += 1
        self._topology.each(Site.forget_gradient)
        self._topology.each(Site.hook)  # a layer that was frozen until now
        self._topology.capture(self.step)

    def _after_load(self, module: nn.Module) -> None:
        """A state was loaded into a module of the model."""
        for site in self._sites.values():
            if site.layer.module is module:
                before = site.parameter
                site.after_load(self._optimizers)
                if site.parameter is not before:
                    release([before])
                    claim(self, [site.parameter])


def _optimizers(optimizer: Optimizer | Sequence[Optimizer]) -> list[Optimizer]:
    optimizers = list(optimizer) if isinstance(optimizer, list | tuple) else [optimizer]
    for one in optimizers:
        if not isinstance(one, Optimizer):
            raise TypeError(
                f"optimizer must be a torch.optim.Optimizer or a list of them, got {type(one).__name__}; attach to the "
                "raw optimizer before it is wrapped"
            )
    if not optimizers:
        raise ValueError("no optimizer was given: the first one is the clock")
    return optimizers  # type: ignore[return-value]


def _check_optimizers(layers, optimizers: list[Optimizer]) -> None:
    held = {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    trained = {name: layer.parameter for name, layer in layers.items() if layer.parameter.requires_grad}
    lost = [name for name, parameter in trained.items() if id(parameter) not in held]
    if lost:
        raise ValueError(
            f"no optimizer updates {', '.join(lost)}: give their parameters to the optimizer, freeze them "
            "(requires_grad=False) or exclude them (layers=['!name'])"
        )


def _disconnect(sites: list[Site], handles: list) -> None:
    for handle in handles:
        handle.remove()
    for site in sites:
        site.unhook()
    release([site.parameter for site in sites])
