"""Where the weights live now and how that changes: a method at work on the sites of a model's layers."""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .draw import Drawn
from .dynamics import Recorder
from .execution.chains import join
from .execution.heap import give_back
from .execution.interface import KEPT, FirstSite
from .execution.masked import MaskedSite
from .execution.meta import MetaSite, materialise_rest
from .execution.optimizers import begin_anew, forget_directions
from .execution.power import Held, from_roots, to_roots
from .execution.power import check as check_power
from .execution.pull import add_to_gradients, by_gradient, shrink, warn_of_weakness
from .execution.shadow import ShadowSite, ThresholdSite
from .execution.sparse import SparseSite
from .execution.sparse_view import mark
from .execution.young import YOUNG, after_step, before_step, born
from .execution.young import check as check_young
from .gradients import StepGradients
from .layers import Layer
from .methods import Change, Method
from .methods.hidden import HIDDEN, REACHED
from .passes import Passes
from .probing import check as check_probed
from .sources import Source, Support


class Topology:
    """The sites of all layers under one method: first masks, scheduled counts, updates.

    Args:
        layers: the layers that may be sparse.
        method: decides which weights live.
        source: where they may live.
        total_steps: length of the run, or None.
        optimizers: their state follows the weights.
        passes: for a method that chooses its first masks by passes of its own.
        power: of powerpropagation; 1: none.

    Attributes:
        sites: layer name -> what holds its weights.
        drawn: layer name -> draw, for the masks that are exactly a draw.
        start_count: live weights when training began.
        num_updates, num_moved: changes so far, and weights that moved or went in them.
        recorder: what changed at each update.
        gradients: the dense gradients that updates look at.

    Raises:
        ValueError: method, source and layers do not go together. No weight was touched.
    """

    def __init__(
        self,
        layers: Mapping[str, Layer],
        method: Method,
        source: Source,
        total_steps: int | None,
        optimizers: Sequence[Optimizer],
        passes: Passes | None = None,
        power: float = 1.0,
    ):
        self.method, self.total_steps, self.power = method, total_steps, power
        check_power(power, method)
        if method.grown_state == "warmup":
            check_young(optimizers)
        self.num_weights = sum(math.prod(layer.shape) for layer in layers.values())
        if round(method.density * self.num_weights) == 0:
            raise ValueError(
                f"density {method.density:g} of {self.num_weights} weights is not one weight: raise the density"
            )
        self._optimizers = optimizers
        supports = source.supports(layers)
        self.source_drawn = {n: s.positions for n, s in supports.items() if isinstance(s.positions, Drawn)}
        self._layers = layers
        self.sites: dict[str, Any] = {
            n: first_site(layer, supports[n], method) for n, layer in layers.items()
        }
        views = self.views()
        method.check(views, total_steps)
        starts = method.start(views)
        self.repairs = {
            n: r for n in supports for r in (supports[n].repair, starts[n].repair) if r is not None
        }
        for name, repair in self.repairs.items():
            if repair.added != repair.removed and "keep_budget" in (
                getattr(method, "flow", ""),
                getattr(source, "flow", ""),
            ):
                warnings.warn(
                    f"{name}: the repair of dead units added {repair.added} weights and could give back only "
                    f"{repair.removed}, so flow='keep_budget' does not keep its budget here",
                    stacklevel=4,
                )
        self.drawn: dict[str, Drawn] = {}
        for name, start in starts.items():
            self._place(name, start.mask)
        self.start_count = self.num_active
        self.num_updates = self.num_moved = 0
        self.recorder = Recorder({name: math.prod(layer.shape) for name, layer in layers.items()})
        self._empty: set[str] = set()
        self.gradients = StepGradients(method, self.sites, total_steps)
        self._parents: dict[str, tuple[nn.Module, str]] = {}
        self._first: Mapping[str, Change] = {}
        if method.needs:
            self._first = self._begin(passes)
        elif method.due(-1, total_steps):
            self._first = self._decide(-1)

    def begin(self, model: nn.Module, sparse: Collection[str]) -> None:
        """Put the weights onto their first masks, and some layers under sparse execution.

        The first thing that changes the model.
        """
        for name, site in self.sites.items():
            if name not in sparse:
                site.remask()
        if self._first:
            self._carry_out(self._first, -1)
        if any(isinstance(site, MetaSite) for site in self.sites.values()):
            materialise_rest(model, self._layers, self._optimizers, self.method.seed)
        for name in sparse:
            site = self.sites[name]
            positions = site.positions()
            values = site.first_values(positions, self.method.seed)
            self.sites[name] = SparseSite(site.layer, site.source, positions, values, self._optimizers)
            self.sites[name].memory = site.memory
            give_back(len(positions))
            self.recorder.mark = mark
        join(model)
        for site in self.sites.values():
            site.hook()
        warn_of_weakness(self.method, self._optimizers, self.total_steps)
        modules = list(model.modules())
        self._parents = {
            name: (parent, key)
            for name, layer in self._layers.items()
            for parent in modules
            for key, child in parent._modules.items()
            if child is layer.module
        }

    def first_counts(self) -> dict[str, int]:
        """Live weights of each layer once training begins."""
        gone = {name: len(change.dropped) for name, change in self._first.items()}
        return {name: site.num_active - gone.get(name, 0) for name, site in self.sites.items()}

    def views(self) -> dict:
        """The layers as a method sees them."""
        return {name: site.view() for name, site in self.sites.items()}

    @property
    def num_active(self) -> int:
        """Live weights of all layers."""
        return sum(site.num_active for site in self.sites.values())

    def due(self, step: int) -> bool:
        """Whether the topology changes at this step."""
        return self.method.due(step, self.total_steps)

    def target(self, step: int) -> int:
        """Live weights scheduled once ``step`` is done."""
        return self.method.target(step, self.num_weights, self.start_count, self.total_steps)

    def update(self, step: int) -> None:
        """The method's change at this step, unless a gradient it needs is not finite (then with a warning).

        Raises:
            RuntimeError: its probe batches were not passed through the net.
        """
        check_probed(self, step)
        self.gradients.add_kept(step)
        if self.method.wants_gradient(step, self.total_steps) and not self.gradients.are_usable(step):
            return
        self._carry_out(self._decide(step), step)
        self.warn_of_empty_layers({name: site.num_active for name, site in self.sites.items()}, stacklevel=6)

    def _place(self, name: str, mask: Drawn | Tensor | None) -> None:
        site = self.sites[name]
        if isinstance(site, MetaSite):
            drawn = site.place(mask)
            if site.source is None or drawn.nests_in(site.source):
                self.drawn[name] = drawn
            return
        assert isinstance(site, MaskedSite)
        if isinstance(mask, Drawn):
            inside = None if site.source is None else site.source.cpu().numpy()
            if inside is None or mask.nests_in(self.source_drawn.get(name)):
                self.drawn[name] = mask
            mask = torch.from_numpy(mask.mask(inside))
        elif mask is None and name in self.source_drawn:
            self.drawn[name] = self.source_drawn[name]
        if mask is not None:
            site.place(mask.reshape(-1).nonzero().squeeze(1))

    def _begin(self, passes: Passes | None) -> dict[str, Change]:
        assert passes is not None
        dummy = [name for name, site in self.sites.items() if isinstance(site, MetaSite)]
        if dummy:
            raise ValueError(
                f"{self.method.name} scores weights, but {dummy[0]} is on the meta device and has none yet"
            )
        try:
            return self.method.begin(self.views(), passes, self.target(-1))
        except ValueError as error:
            raise ValueError(f"{self.method.name} cannot choose its first masks: {error}") from error

    def _decide(self, step: int) -> dict[str, Change]:
        try:
            return self.method.update(self.views(), step, self.target(step), self.total_steps)
        except ValueError as error:
            raise ValueError(f"{self.method.name} cannot decide at step {step}: {error}") from error

    def _carry_out(self, changes: Mapping[str, Change], step: int) -> None:
        recorded = step >= 0 and any(len(c.dropped) + len(c.grown) + c.returned for c in changes.values())
        if recorded:
            self.recorder.before(self.sites)
        for name, change in changes.items():
            if change.memory is not None:
                site = self.sites[name]
                kept = {key: site.memory[key] for key in (KEPT, HIDDEN, *YOUNG) if key in site.memory}
                site.memory = kept | dict(change.memory)
            if len(change.dropped) + len(change.grown):
                self.sites[name].apply(change, self._optimizers, self.method, step)
                give_back(self.sites[name].num_active if isinstance(self.sites[name], SparseSite) else 0)
                if self.method.grown_state == "warmup":
                    born(self.sites[name], change)
                self.num_moved += len(change.dropped)
                self.drawn.pop(name, None)
        if self.method.hides:
            for site in self.sites.values():
                site.settle()
        forget_directions(self._optimizers)
        if self.method.begins_anew(step, self.total_steps):
            begin_anew(self._optimizers)
        self.num_updates += 1
        counts = {name: site.num_active for name, site in self.sites.items()}
        if recorded:
            self.recorder.after(step, changes, counts)
        live, target = sum(counts.values()), self.target(step)
        assert live == target, (
            f"{self.method.name} left {live} live weights at step {step}, scheduled are {target}"
        )

    def warn_of_empty_layers(self, counts: Mapping[str, int], stacklevel: int) -> None:
        """Say once of each layer that it has no live weight left."""
        empty = {name for name, count in counts.items() if count == 0}
        for name in sorted(empty - self._empty):
            warnings.warn(
                f"{name} has no live weight left (density {self.method.density:g}): no signal passes it. Raise the "
                "density or choose a distribution that leaves it some",
                stacklevel=stacklevel + 1,
            )
        self._empty = empty

    # -- around every step; called by the clock ----------------------------------------------------------------

    def check_in_place(self) -> None:
        """Refuse to go on when a layer or its weight is no longer the one that was attached.

        Raises:
            RuntimeError: names the layer.
        """
        for name, site in self.sites.items():
            parent, key = self._parents.get(name, (None, ""))
            children = {} if parent is None else parent._modules
            replaced = parent is not None and children.get(key) is not site.layer.module
            keys = [at for at, child in children.items() if child is site.layer.module] if replaced else []
            if keys:
                now = (
                    site.name.removesuffix(f"{key}.{site.layer.attribute}")
                    + f"{keys[0]}.{site.layer.attribute}"
                )
                raise RuntimeError(
                    f"{name} is called {now} since modules were inserted or taken away after attach(), and masks, states "
                    "and files go by names: detach before changing the order of modules, then attach again"
                )
            held = site.layer.module._parameters.get(site.layer.attribute)  # none: it is parametrized
            if replaced or held is not site.parameter:
                raise RuntimeError(
                    f"{name} was replaced after attach(): its mask would be lost. Detach before replacing a layer or "
                    "its parameter, or giving it a parametrization, then attach again"
                )

    def remask(self, optimizer: Optimizer) -> None:
        """Set the inactive ones of an optimizer's weights to zero."""
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        for site in self.sites.values():
            if id(site.parameter) in held:
                site.remask()

    def swap_in(self, step: int, optimizer: Optimizer, has_closure: bool) -> None:
        """Before a step: put values behind zeros in place, where training reaches them.

        Raises:
            RuntimeError: the step is given a closure, which would compute with them.
        """
        if not self.method.hides:
            return
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        for site in self.sites.values():
            if has_closure and (self.method.shrinks or len(site.memory.get(REACHED, ()))):
                raise RuntimeError(
                    f"{self.method.name} trains values behind zeros or thresholds, which are in place during the step: a "
                    "closure would compute with them; use an optimizer that needs none"
                )
            if id(site.parameter) in held:
                site.swap_in(optimizer, self.method.hidden_pull(step))

    def to_roots(self, optimizer: Optimizer, has_closure: bool) -> Held:
        """Right before a step: roots in the place of weights, under powerpropagation.

        Raises:
            RuntimeError: the step is given a closure, which would compute with them.
        """
        if self.power == 1:
            return []
        if has_closure:
            raise RuntimeError(
                f"powerpropagation (power={self.power:g}) puts roots in the place of weights during the step: a closure "
                "would compute with them; use an optimizer that needs none"
            )
        return to_roots(self.sites.values(), optimizer, self.power)

    def from_roots(self, held: Held) -> None:
        """Right after it: the weights again."""
        from_roots(held, self.power)

    def before_step(self, optimizer: Optimizer) -> dict[str, Tensor]:
        """What ``after_step`` must know of weights before a step that is about to be made."""
        return before_step(self.sites.values(), optimizer) if self.method.grown_state == "warmup" else {}

    def after_step(self, optimizer: Optimizer, before: dict[str, Tensor]) -> None:
        """Right after a step: the moves of weights that grew a short while ago are made those of their age."""
        if before:
            after_step(self.sites.values(), optimizer, before)

    def pull(self, step: int, optimizer: Optimizer, has_closure: bool) -> bool:
        """Before a step: add the pull on leaving weights to their gradients; False if it must follow the step."""
        strength = self.method.strength(step, self.total_steps)
        gradients = not has_closure and by_gradient(self.method.penalty, optimizer)
        if strength and gradients:
            add_to_gradients(self.sites.values(), optimizer, strength)
        return gradients or not strength

    def shrink(self, step: int, optimizer: Optimizer) -> None:
        """After a step: shrink leaving weights by themselves."""
        shrink(self.sites.values(), optimizer, self.method.strength(step, self.total_steps))


def first_site(layer: Layer, support: Support, method: Method) -> FirstSite:
    """What holds a layer's weights until training begins."""
    if layer.parameter.is_meta:
        return MetaSite(layer, support.positions)
    kind = ThresholdSite if method.shrinks else ShadowSite if method.hides else MaskedSite
    return kind(layer, support.mask())
