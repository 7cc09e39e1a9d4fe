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
from .execution.hooks import LoadHook, StepHooks, attached_to, claim, release
from .execution.masked import MaskedSite
from .layers import find
from .masks import density as density_of
from .methods import Change, Method
from .names import nearest, plain
from .report import Report, build_report
from .sources import DenseSource, Source, describe

EXECUTIONS = ("masked",)


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
    if total_steps is not None and (
        isinstance(total_steps, bool) or not isinstance(total_steps, int) or total_steps < 1
    ):
        raise ValueError(f"total_steps must be an int >= 1 or None, got {total_steps!r}")
    unused = {"data": data, "loss_fn": loss_fn, "example_input": example_input}
    for name in [name for name, value in unused.items() if value is not None]:
        warnings.warn(f"{method.name} makes no passes of its own: {name}= is not used", stacklevel=2)
    return Sparsifier(model, optimizers, method, source or DenseSource(), total_steps, layers)


class Sparsifier:
    """What ``attach`` returns: the masks, the clock and the method's progress.

    Attributes:
        model: the model as it was given.
        method, source: what decides where weights live.
        step: optimizer steps done so far (skipped ones, as after an overflow, do not count).
        total_steps: length of the run, or None.
        drawn: name -> draw, for the masks that are exactly a draw and so cost only a seed.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: list[Optimizer],
        method: Method,
        source: Source,
        total_steps: int | None,
        layers: str | Sequence[str] | None,
    ):
        self.model, self.method, self.source, self.total_steps = model, method, source, total_steps
        self.step = 0
        self.drawn: dict[str, Drawn] = {}
        self._optimizers = optimizers
        self._layers = find(model, layers)
        for name, layer in self._layers.items():
            if attached_to(layer.parameter):
                raise ValueError(
                    f"{name} is attached to a sparsifier already: call detach() on that one first"
                )
        self._check_optimizers()
        supports = source.supports(self._layers)
        self._source_drawn = {n: s.positions for n, s in supports.items() if isinstance(s.positions, Drawn)}
        self._sites = {name: MaskedSite(layer, supports[name].mask()) for name, layer in self._layers.items()}
        views = {name: site.view() for name, site in self._sites.items()}
        method.check(views, total_steps)
        starts = method.start(views)
        self.repairs = {
            n: r for n in supports for r in (supports[n].repair, starts[n].repair) if r is not None
        }
        for name, start in starts.items():
            self._place(name, start.mask)
        self.start_count = sum(site.num_active for site in self._sites.values())
        self._total = sum(site.parameter.numel() for site in self._sites.values())
        self._loaded: dict[str, Tensor] = {}
        self._num_updates = self._num_moved = 0
        if method.due(-1, total_steps):
            self._update(-1)
        self._empty: set[str] = set()
        self._warn_of_empty_layers()
        self._connect()

    def _place(self, name: str, mask: Drawn | Tensor | None) -> None:
        site = self._sites[name]
        if isinstance(mask, Drawn):
            inside = None if site.source is None else site.source.cpu().numpy()
            if inside is None:
                self.drawn[name] = mask
            mask = torch.from_numpy(mask.mask(inside))
        elif mask is None and name in self._source_drawn:
            self.drawn[name] = self._source_drawn[name]
        if mask is not None:
            site.place(mask)

    def _check_optimizers(self) -> None:
        held = {
            id(p)
            for optimizer in self._optimizers
            for group in optimizer.param_groups
            for p in group["params"]
        }
        lost = [
            n
            for n, layer in self._layers.items()
            if layer.parameter.requires_grad and id(layer.parameter) not in held
        ]
        if lost:
            raise ValueError(
                f"no optimizer updates {', '.join(lost)}: give their parameters to the optimizer, freeze them "
                "(requires_grad=False) or exclude them (layers=['!name'])"
            )

    def _connect(self) -> None:
        """From here on the model is changed: weights go onto their masks, hooks are set."""
        claim(self, [site.parameter for site in self._sites.values()])
        owners = {id(site.layer.module): site.layer.module for site in self._sites.values()}
        me = weakref.ref(self)
        self._handles = [m.register_load_state_dict_post_hook(LoadHook(me)) for m in owners.values()]
        self._handles += [handle for o in self._optimizers for handle in StepHooks.register(o, self)]
        for site in self._sites.values():
            site.hook()
            site.remask()
        self._capture()
        self._finalizer = weakref.finalize(self, _disconnect, list(self._sites.values()), self._handles)

    # -- what can be read --------------------------------------------------------------------------------------

    @property
    def masks(self) -> dict[str, Tensor]:
        """Parameter name -> bool tensor of the weight's shape, True = active. Live tensors: do not write to them."""
        return {name: site.mask for name, site in self._sites.items()}

    @property
    def source_masks(self) -> dict[str, Tensor]:
        """Parameter name -> bool tensor of the positions that may live."""
        return {
            name: torch.ones_like(site.mask) if site.source is None else site.source.view(site.layer.shape)
            for name, site in self._sites.items()
        }

    @property
    def density(self) -> float:
        """Live weights over all weights of the sparse layers."""
        return density_of(self.masks)

    @property
    def target_count(self) -> int:
        """Live weights scheduled for now."""
        return self.method.target(self.step - 1, self._total, self.start_count, self.total_steps)

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
        return build_report(
            self, {n: s.layer for n, s in self._sites.items()}, self._num_updates, self._num_moved
        )

    def dense_state_dict(self) -> dict[str, Tensor]:
        """The model's state_dict under plain keys, zeros in place."""
        return {plain(name): value for name, value in self.model.state_dict().items()}

    @torch.no_grad()
    def apply_to(self, model: nn.Module) -> None:
        """Zero the inactive weights of another copy of the model, e.g. of an average of its weights."""
        parameters = {plain(name): parameter for name, parameter in model.named_parameters()}
        for name, site in self._sites.items():
            if name not in parameters:
                raise ValueError(f"the model has no parameter {name!r}: {nearest(name, list(parameters))}")
            parameters[name].masked_fill_(~site.mask.to(parameters[name].device), 0)

    # -- state -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on as if never stopped, beside the model's and the optimizers' own states.

        Plain data and tensors only, so ``torch.load(weights_only=True)`` reads it. Masks that still are a draw are
        stored as their seed and a hash, others as one bit a weight.
        """
        return {
            "format": saved.FORMAT,
            "describe": self.describe(),
            "step": self.step,
            "start_count": self.start_count,
            "num_updates": self._num_updates,
            "num_moved": self._num_moved,
            "masks": saved.pack_masks(self.masks, self.drawn),
            "sources": saved.pack_sources({n: s.source for n, s in self._sites.items()}, self._source_drawn),
            "gradients": {
                n: s.dense_gradient for n, s in self._sites.items() if s.dense_gradient is not None
            },
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state_dict()``; before or after the model's own ``load_state_dict``, in any order.

        Raises:
            ValueError: the state is of another method, source, set of layers or format, or is damaged. Nothing has
                changed then.
        """
        saved.check(state, self.describe(), {name: site.layer.shape for name, site in self._sites.items()})
        masks, drawn = saved.unpack_masks(state["masks"], {n: s.layer.shape for n, s in self._sites.items()})
        sources = saved.unpack_sources(state["sources"], {n: s.layer.shape for n, s in self._sites.items()})
        for name, site in self._sites.items():
            device = site.parameter.device
            source = sources[name]
            site.source = None if source is None else source.to(device)
            site.place(masks[name].to(device))
            gradient = state["gradients"].get(name)
            site.dense_gradient = None if gradient is None else gradient.to(device).clone()
            if name in self._loaded:
                with torch.no_grad():
                    site.parameter.copy_(self._loaded[name])
            site.remask()
        self._loaded.clear()
        self.drawn = drawn
        self.step, self.start_count = int(state["step"]), int(state["start_count"])
        self._num_updates, self._num_moved = int(state["num_updates"]), int(state["num_moved"])
        self._capture()

    def detach(self) -> nn.Module:
        """Let go of model and optimizers: the weights keep their zeros, nothing keeps them there any more."""
        self._finalizer.detach()
        _disconnect(list(self._sites.values()), self._handles)
        return self.model

    # -- the clock; called by the hooks ------------------------------------------------------------------------

    def _is_clock(self, optimizer: Optimizer) -> bool:
        return optimizer is self._optimizers[0]

    def _before_step(self, optimizer: Optimizer, has_closure: bool, overflow: bool) -> bool:
        """Returns whether the optimizer must leave everything as it is (a method's update replaces the step)."""
        for name, site in self._sites.items():
            if site.layer.parameter is not site.parameter:
                raise RuntimeError(
                    f"{name} was replaced after attach(): its mask would be lost. Detach before replacing a "
                    "parameter, then attach again"
                )
        if overflow:
            return False
        due = self.method.due(self.step, self.total_steps)
        if due and self.method.needs_step_gradient and self._is_clock(optimizer):
            if has_closure:  # the gradient comes inside the step: remember the weights it is taken at
                for site in self._sites.values():
                    site.weight_before_step = site.parameter.detach().clone()
            else:
                self._update(self.step)
        if due and getattr(self.method, "skip_step_on_update", False):
            if has_closure:
                raise RuntimeError("skip_step_on_update cannot replace a step that is given a closure")
            return True
        return False

    def _after_step(self, optimizer: Optimizer, overflow: bool) -> None:
        if overflow:
            for site in self._sites.values():
                site.forget_gradient()
            return
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        for site in self._sites.values():
            if id(site.parameter) in held:
                site.remask()
        if not self._is_clock(optimizer):
            return
        early = self.method.needs_step_gradient and all(
            s.weight_before_step is None for s in self._sites.values()
        )
        if self.method.due(self.step, self.total_steps) and not early:
            self._update(self.step)
        self.step += 1
        self._loaded.clear()
        for site in self._sites.values():
            site.forget_gradient()
            site.hook()  # a layer that was frozen until now
        self._capture()

    def _capture(self) -> None:
        wanted = self.method.wants_gradient(self.step, self.total_steps)
        for site in self._sites.values():
            site.capturing = wanted

    def _update(self, step: int) -> None:
        wanted = step >= 0 and self.method.wants_gradient(step, self.total_steps)
        if wanted and not self._gradients_are_usable(step):
            return
        target = self.method.target(step, self._total, self.start_count, self.total_steps)
        views = {name: site.view() for name, site in self._sites.items()}
        changes = self.method.update(views, step, target, self.total_steps)
        for name, change in changes.items():
            self._apply(name, change, step)
        active = sum(site.num_active for site in self._sites.values())
        assert active == target, (
            f"{self.method.name} left {active} live weights at step {step}, scheduled are {target}"
        )
        self._num_updates += 1
        if step >= 0:
            self._warn_of_empty_layers()

    def _apply(self, name: str, change: Change, step: int) -> None:
        if len(change.dropped) + len(change.grown) == 0:
            return
        value = getattr(self.method, "grown_value", "zero")
        state = getattr(self.method, "grown_state", "reset")
        self._sites[name].apply(change, self._optimizers, value, state, self.method.seed, step)
        self._num_moved += len(change.dropped)
        self.drawn.pop(name, None)

    def _gradients_are_usable(self, step: int) -> bool:
        """Average the dense gradients over the ranks; False, with a warning, if one is not finite."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            for site in self._sites.values():
                if site.dense_gradient is None:
                    site.dense_gradient = torch.zeros_like(site.parameter)
                torch.distributed.all_reduce(site.dense_gradient)
                site.dense_gradient /= torch.distributed.get_world_size()
        gradients = {n: s.dense_gradient for n, s in self._sites.items() if s.dense_gradient is not None}
        bad = [name for name, gradient in gradients.items() if not bool(gradient.isfinite().all())]
        if not bad:
            return True
        where = f"the dense gradient of {', '.join(bad)} is not finite at step {step}"
        if self.method.needs_step_gradient:
            raise ValueError(f"{self.method.name}: {where}, so no mask can be chosen; the model is unchanged")
        warnings.warn(
            f"{self.method.name}: {where}: this update is left out, the topology stays", stacklevel=2
        )
        return False

    def _warn_of_empty_layers(self) -> None:
        empty = {name for name, site in self._sites.items() if site.num_active == 0}
        for name in sorted(empty - self._empty):
            warnings.warn(
                f"{name} has no live weight left (density {self.method.density:g}): no signal passes it. Raise the "
                "density or choose a distribution that leaves it some",
                stacklevel=3,
            )
        self._empty = empty

    def _after_load(self, module: nn.Module) -> None:
        """A state was loaded into a module of the model: follow replaced parameters, put weights back on the mask.

        What was loaded off the mask is kept until the next step: it belongs to the masks of the same checkpoint,
        which may be loaded later.
        """
        for name, site in self._sites.items():
            if site.layer.module is not module:
                continue
            if site.layer.parameter is not site.parameter:
                release([site.parameter])
                site.rebind(site.layer.parameter, self._optimizers)
                claim(self, [site.parameter])
            if bool((site.parameter.detach()[~site.mask] != 0).any()):
                self._loaded[name] = site.parameter.detach().clone()
            site.remask()


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


def _disconnect(sites: list[MaskedSite], handles: list) -> None:
    for handle in handles:
        handle.remove()
    for site in sites:
        site.unhook()
        site.capturing = False
    release([site.parameter for site in sites])
