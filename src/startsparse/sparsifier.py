"""The one stateful object: binds a method to a model, its optimizers and the clock."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .clock import Clock
from .draw import Drawn
from .dynamics import Dynamics
from .execution.auto import faster
from .execution.chains import part
from .execution.choice import Choice, choose
from .execution.every_step import listen, stop_listening
from .execution.hooks import LoadHook, StepHooks, attached_to, claim, release
from .execution.interface import Site
from .execution.modules import is_sparse, refuse_sparse
from .execution.optimizers import replace
from .execution.strangers import Strangers
from .layers import check_module, find, warn_of_dense
from .masks import Lazy
from .methods import Method
from .names import nearest, plain
from .passes import Passes
from .probing import probes
from .report import Report, build_dynamics, build_report
from .resuming import COUNTS, read
from .sources import Source, describe
from .state import FORMAT, pack_masks, pack_sources
from .topology import Topology


class Sparsifier:
    """What ``attach`` returns: the masks, the clock and the method's progress.

    Attributes:
        model: the model as it was given.
        method, source: what decides where weights live.
        execution: layer name -> how it is executed, and why.
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
        given: Mapping[str, Any],
        power: float = 1.0,
    ):
        self.model, self.method, self.source, self.total_steps = model, method, source, total_steps
        self._optimizers = optimizers
        for name, module in model.named_modules():
            if is_sparse(module):
                _check_free(plain(f"{name}.weight" if name else "weight"), module.weight)  # type: ignore[arg-type]
        refuse_sparse(model)
        self._layers = find(model, layers)
        for name, layer in self._layers.items():
            _check_free(name, layer.parameter)
        _check_optimizers(self._layers, optimizers)
        if layers is None:
            warn_of_dense(model, self._layers, stacklevel=3)
        choices = choose(execution, model, self._layers, optimizers, method)
        passes = Passes(model, self._layers, **given) if method.needs else None
        self._topology = Topology(self._layers, method, source, total_steps, optimizers, passes, power)
        if execution == "auto":
            able = {
                name: self._layers[name] for name, choice in choices.items() if choice.execution == "sparse"
            }
            choices |= faster(model, able, self._topology.first_counts(), given["example_input"])
        self.execution: dict[str, Choice] = choices
        self._topology.warn_of_empty_layers(self._topology.first_counts(), stacklevel=3)
        self._connect()

    def _connect(self) -> None:
        """From here on the model is changed: weights go onto their masks, hooks are set."""
        sparse = [name for name, choice in self.execution.items() if choice.execution == "sparse"]
        self._topology.begin(self.model, sparse)
        claim(self, [site.parameter for site in self._sites.values()])
        owners = [
            module
            for module in self.model.modules()
            if any(p is not None for p in module._parameters.values())
        ]
        self._parameters = {
            (id(m), key): p for m in owners for key, p in m._parameters.items() if p is not None
        }
        hook = LoadHook(weakref.ref(self))
        self._handles = [module.register_load_state_dict_post_hook(hook) for module in owners]
        self._handles += [
            handle for optimizer in self._optimizers for handle in StepHooks.register(optimizer, self)
        ]
        self._strangers = Strangers(self, self._optimizers)
        ears = listen(self._strangers)
        self._finalizer = weakref.finalize(self, _disconnect, list(self._sites.values()), self._handles, ears)
        self._clock = Clock(self._topology, self._optimizers)
        self._clock.set(0)

    # -- what can be read --------------------------------------------------------------------------------------

    @property
    def _sites(self) -> dict[str, Site]:
        return self._topology.sites

    @property
    def step(self) -> int:
        """Optimizer steps done so far; skipped ones, as after an overflow, do not count."""
        return self._clock.step

    @property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: layer.shape for name, layer in self._layers.items()}

    @property
    def masks(self) -> Mapping[str, Tensor]:
        """Parameter name -> bool tensor of the weight's shape, True = active. Do not write to them.

        Under sparse execution each one is made when it is looked at.
        """
        return Lazy({name: lambda site=site: site.mask for name, site in self._sites.items()})

    @property
    def target_masks(self) -> Mapping[str, Tensor]:
        """Parameter name -> bool tensor: the ticket a method is making its way to; the masks, where there is none."""
        return Lazy({name: site.target_mask for name, site in self._sites.items()})

    @property
    def source_masks(self) -> Mapping[str, Tensor]:
        """Parameter name -> bool tensor of the positions that may live, made when it is looked at."""
        return Lazy({name: site.source_mask for name, site in self._sites.items()})

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
        """What the method is doing: "static", "scoring", "pruning", "exploring", "fixed", "dense" or "sparse"."""
        return self.method.phase(self.step, self.total_steps)

    def describe(self) -> dict[str, Any]:
        """Method, hyper-parameters and source as plain data."""
        method = {"name": self.method.name} | self.method.hyper_parameters()
        power = self._topology.power
        described = {"method": method, "source": describe(self.source), "total_steps": self.total_steps}
        return described if power == 1 else described | {"power": power}

    def report(self) -> Report:
        """Where the weights live now, per layer and in all; prints as a table."""
        return build_report(self, self._layers, self._topology)

    def dynamics(self, example_input: Any = None, *, last: int | None = None) -> Dynamics:
        """How the topology has moved so far: churn, layer densities, positions ever live, dead units.

        Args:
            example_input: a batch; with it the FLOPs of the topology as it is now are counted.
            last: so many updates, the newest ones, instead of all: for a look now and then during training.

        Example:
            >>> import startsparse as ss
            >>> model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 3))
            >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            >>> sparse = ss.attach(model, optimizer, ss.SET(density=0.2, update_interval=2), total_steps=8)
            >>> for _ in range(8):
            ...     model(torch.randn(4, 20)).square().mean().backward()
            ...     optimizer.step()
            >>> moved = sparse.dynamics()
            >>> moved.steps, moved.exploration > sparse.density
            ([2, 4], True)
        """
        return build_dynamics(self, self._layers, self._topology, example_input, last)

    def probes(self) -> Iterator[int]:
        """The probe batches that the coming step's update asks for (``GGR(probes=...)``), to be gone through before the
        step's own backward pass; at all other steps, and for all other methods, there are none.

        In each round pass one batch through the model and call ``backward()``, with the same loss (and, under a gradient
        scaler, the same scaling) as ever. Its gradient counts for the ranking as that of a step does, and for nothing
        else: gradients, buffers such as running statistics, and random generators are afterwards as before.

        Raises:
            RuntimeError: the step's own gradients have arrived already, or a round brought none.

        Example:
            >>> import startsparse as ss
            >>> model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 3))
            >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            >>> sparse = ss.attach(model, optimizer, ss.GGR(density=0.2, update_interval=2, probes=3), total_steps=8)
            >>> made = 0
            >>> for _ in range(8):
            ...     for _ in sparse.probes():
            ...         model(torch.randn(4, 20)).square().mean().backward()
            ...         made += 1
            ...     model(torch.randn(4, 20)).square().mean().backward()
            ...     optimizer.step()
            ...     optimizer.zero_grad()
            >>> made, sparse.report().num_updates
            (6, 2)
        """
        return probes(self._topology, self.model, self.step)

    def dense_state_dict(self) -> dict[str, Tensor]:
        """The model's state_dict under plain keys, zeros in place, whatever executes the layers."""
        state = {plain(name): value for name, value in self.model.state_dict().items()}
        for name, module in self.model.named_modules(remove_duplicate=False):
            if is_sparse(module):
                prefix = plain(f"{name}." if name else "")
                state[f"{prefix}weight"] = module.dense_weight()  # type: ignore[operator]
                del state[f"{prefix}positions"]
        return state

    @torch.no_grad()
    def apply_to(self, model: nn.Module) -> None:
        """Zero the inactive weights of another copy of the model, e.g. of an average of its weights."""
        check_module(model)
        parameters = {plain(name): parameter for name, parameter in model.named_parameters()}
        for name, site in self._sites.items():
            if name not in parameters:
                raise ValueError(f"the model has no parameter {name!r}: {nearest(name, list(parameters))}")
            if parameters[name].shape != site.shape:
                raise ValueError(
                    f"{name} of the copy is sparse, and its values are those of the positions it had when it was made: "
                    "average the tensors of dense_state_dict() instead"
                )
            parameters[name].masked_fill_(~site.mask.to(parameters[name].device), 0)

    # -- state -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on as if never stopped, beside the model's and the optimizers' own states.

        Plain data and tensors only, so ``torch.load(weights_only=True)`` reads it. Masks that still are a draw are
        stored as their seed and a hash, others as one bit a weight.
        """
        topology = self._topology
        return {
            "format": FORMAT,
            "describe": self.describe(),
            "step": self.step,
            "start_count": topology.start_count,
            "num_updates": topology.num_updates,
            "num_moved": topology.num_moved,
            "masks": pack_masks(
                Lazy({n: s.positions for n, s in self._sites.items()}), topology.drawn, self._shapes
            ),
            "sources": pack_sources({n: s.source for n, s in self._sites.items()}, topology.source_drawn),
            "gradients": {n: s.gradient_state() for n, s in self._sites.items()},
            "memory": {n: dict(s.memory) for n, s in self._sites.items()},
            "dynamics": topology.recorder.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state_dict()``; before or after the model's own ``load_state_dict``, in any order.

        Raises:
            ValueError: the state is of another method, source, set of layers or format, or is damaged. Nothing has
                changed then.
        """
        topology = self._topology
        found = read(state, self.describe(), self._shapes, self.method, topology.source_drawn)
        for name, site in self._sites.items():
            site.restore(found.positions[name], found.sources[name], found.gradients[name], self._optimizers)
            site.memory = found.memory[name]
        topology.recorder.load_state_dict(found.dynamics)
        topology.drawn = found.drawn
        topology.start_count, topology.num_updates, topology.num_moved = (
            found.counts[key] for key in COUNTS[1:]
        )
        topology.gradients.begin_within_a_step()
        self._clock.set(found.counts["step"])

    def detach(self) -> nn.Module:
        """Let go of model and optimizers: plain modules and zeros are left, nothing keeps the zeros any more."""
        _ = self._finalizer()
        for name, site in self._sites.items():
            self._topology.sites[name] = site.release(self._optimizers)
        part(self.model)
        return self.model

    def __reduce_ex__(self, protocol: Any) -> Any:
        """A copy would share hooks and clock with the original, and keep nothing sparse.

        Raises:
            TypeError: always; says what to copy instead.
        """
        raise TypeError(
            "a sparsifier is bound to its model and optimizers by hooks, and is neither copied nor pickled: copy the model "
            "(a copy is a model of its own, without hooks) and state_dict(), and attach to the copy"
        )

    def _after_load(self, module: nn.Module) -> None:
        """A state was loaded into a module of the model: optimizers and masks follow what was replaced."""
        for key, parameter in module._parameters.items():
            before = self._parameters.get((id(module), key))
            if before is not None and parameter is not None and parameter is not before:
                replace(self._optimizers, before, parameter, lambda state, fresh: state)
                self._parameters[id(module), key] = parameter
        for site in self._sites.values():
            if site.layer.module is module:
                release([site.parameter])
                if site.after_load(self._optimizers):
                    _ = self._topology.drawn.pop(site.name, None)
                claim(self, [site.parameter])


def _check_free(name: str, parameter: Tensor) -> None:
    holder = attached_to(parameter)
    if isinstance(holder, Sparsifier):
        raise ValueError(f"{name} is attached to a sparsifier already: call detach() on that one first")
    if holder is not None:
        raise ValueError(f"{name} is being searched: finish() or restore() that search first")


def _check_optimizers(layers, optimizers: list[Optimizer]) -> None:
    held = {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    trained = {name: layer.parameter for name, layer in layers.items() if layer.parameter.requires_grad}
    lost = [name for name, parameter in trained.items() if id(parameter) not in held]
    if lost:
        raise ValueError(
            f"no optimizer updates {', '.join(lost)}: give their parameters to the optimizer, freeze them "
            "(requires_grad=False) or exclude them (layers=['!name'])"
        )


def _disconnect(sites: list[Site], handles: list, ears: int) -> None:
    stop_listening(ears)
    for handle in handles:
        handle.remove()
    for site in sites:
        site.unhook()
    release([site.parameter for site in sites])
