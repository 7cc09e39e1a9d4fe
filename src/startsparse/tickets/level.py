"""A ticket in training on a model: zeros kept in place whoever makes the optimizer, steps counted, weights remembered."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.weak import WeakIdKeyDictionary

from ..attaching import attach
from ..execution.every_step import listen, stop_listening
from ..execution.hooks import _overflow as overflow
from ..execution.hooks import attached_to
from ..execution.masked import MaskedSite
from ..execution.modules import is_sparse
from ..layers import Layer
from ..methods import DenseView
from ..names import plain
from ..sources import DenseSource, MaskSource
from ..sparsifier import Sparsifier
from .branches import branch
from .budget import Budget, Meter
from .given import Given
from .squares import Squares
from .ticket import Ticket, snapshot

if TYPE_CHECKING:
    from .early import Settling


_AT_WORK = WeakIdKeyDictionary()  # parameter -> reference to the level that trains it


class Level:
    """One round of a lottery, or a branch off it: train ``model``, then go on.

    It lives as long as its model, or until ``close``. Nothing has to be called: gradients are masked where they arrive
    and weights after the step of any optimizer that holds them. ``attach`` gives a ``Sparsifier`` besides, with a report, state and sparse execution.

    Attributes:
        index: 0 trains all of the source.
        model: the model as it was given, its weights those the level begins with, zeros in place.
        ticket: mask and first weights.
        start_step: the step of the original schedule this training begins at.
        step: optimizer steps done in this level.
    """

    def __init__(
        self,
        index: int,
        model: nn.Module,
        layers: Mapping[str, Layer],
        ticket: Ticket,
        *,
        start_step: int = 0,
        remember: int | None = None,
        squares: bool = False,
        execution: str = "masked",
        settling: Settling | None = None,
        uses: Mapping[str, float] | None = None,
    ):
        self.index, self.model, self.ticket, self.start_step = index, model, ticket, start_step
        self.step = 0
        self._layers, self._execution, self._uses = layers, execution, uses
        self._remember, self._settling = remember, settling
        self.remembered: dict[str, Tensor] | None = None
        self._squares = Squares() if squares else None
        self._sparsifier: Sparsifier | None = None
        self._seen: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        self._resumed = self._ousted = False
        self._take_over()
        for name, layer in layers.items():
            if attached_to(layer.parameter) or is_sparse(layer.module):
                raise ValueError(
                    f"{name} is attached to a sparsifier or runs sparse already: detach it before a lottery trains it; one "
                    "that level.attach() makes ends with its level"
                )
        ticket.put(model)
        self._sites: dict[str, MaskedSite] = {name: self._site(name) for name in layers}
        self._parameters = {name: layer.parameter for name, layer in layers.items()}
        for site in self._sites.values():
            site.hook()
        self._meter = Meter(model, keeps=self)  # whoever holds the model alone still trains a ticket
        self._listener = _Listener(weakref.ref(self))
        self._listening = listen(self._listener)
        self._open = True
        if remember == 0:
            self.remembered = dict(ticket.weights)

    def _take_over(self) -> None:
        """End whatever level is still at work on these weights: of a lottery that was broken off, perhaps."""
        for layer in self._layers.values():
            held = _AT_WORK.get(layer.parameter)
            before = None if held is None else held()
            if before is not None:
                before._oust()
            _AT_WORK[layer.parameter] = weakref.ref(self)

    def _oust(self) -> None:
        if self._open:
            self._ousted = True
            self._let_go()

    def _let_go(self) -> None:
        """No hook of this level is left."""
        self._open = False
        stop_listening(self._listening)
        self._meter.stop()
        for site in self._sites.values():
            site.unhook()
        if self._sparsifier is not None:
            _ = self._sparsifier.detach()

    def _site(self, name: str) -> MaskedSite:
        source = self.ticket.sources.get(name)
        site = MaskedSite(self._layers[name], None if source is None else source.reshape(-1))
        site.place(self.ticket.masks[name].reshape(-1).nonzero().squeeze(1))
        return site

    @property
    def masks(self) -> Mapping[str, Tensor]:
        """Parameter name -> bool tensor of the weight's shape, True = active. Do not write to them."""
        return self.ticket.masks

    @property
    def density(self) -> float:
        """Live weights over all weights of the sparse layers."""
        return self.ticket.density

    @property
    def sparsifier(self) -> Sparsifier | None:
        """What ``attach`` returned, if it was called."""
        return self._sparsifier

    @property
    def budget(self) -> Budget:
        """What this level has cost so far."""
        counts = {name: int(mask.sum()) for name, mask in self.masks.items()}
        return self._meter.read(self._layers, counts, self._uses)

    def attach(self, optimizer: Optimizer | list[Optimizer], **options: Any) -> Sparsifier:
        """A ``Sparsifier`` that holds the ticket: report, state, sparse execution. Before the level's first step.

        Args:
            optimizer: over the parameters of ``model``.
            options: of ``ss.attach``, e.g. ``execution="sparse"``.

        Raises:
            ValueError: whatever ``ss.attach`` refuses, or the level has begun without it.
        """
        if self.step:
            raise ValueError(
                f"level {self.index} has made {self.step} steps already: attach before the first one"
            )
        if self._squares is not None and options.get("execution", self._execution) != "masked":
            raise ValueError("criterion 'obd' watches dense gradients: use execution='masked'")
        for site in self._sites.values():
            site.unhook()
        for one in [optimizer] if isinstance(optimizer, Optimizer) else optimizer:
            self._begin_anew(one)
        method = Given(self.density, masks=self.ticket.masks)
        source = MaskSource(self.ticket.sources) if self.ticket.sources else DenseSource()
        chosen = {"execution": self._execution, "layers": list(self._layers)} | options
        try:
            self._sparsifier = attach(self.model, optimizer, method, source=source, **chosen)
        except Exception:
            for site in self._sites.values():
                site.hook()
            raise
        return self._sparsifier

    def branch(self, kind: str, seed: int = 0) -> Level:
        """What this ticket is compared with, ready to be trained on a copy of the model.

        Args:
            kind: "reinit" (same mask, fresh weights), "shuffle" (the mask permuted in each layer, same weights),
                "random" (both drawn anew) or "retrain" (the ticket itself, for another recipe).
            seed: of what is drawn.

        Raises:
            ValueError: unknown kind, or the model runs sparse (branch before that).
        """
        if any(is_sparse(module) for module in self.model.modules()):
            raise ValueError("a model that runs sparse is not copied: branch before level.attach()")
        other = copy.deepcopy(self.model)
        owners = dict(zip(self.model.modules(), other.modules(), strict=True))
        layers = {
            n: Layer(layer.name, owners[layer.module], layer.attribute, layer.shape, layer.geometry)
            for n, layer in self._layers.items()
        }
        ticket = branch(kind)(self.ticket, seed)
        start = ticket.step if self.start_step == self.ticket.step else self.start_step
        return Level(
            self.index, other, layers, ticket, start_step=start, execution=self._execution, uses=self._uses
        )

    def settled(self) -> bool:
        """Whether the ticket that would be drawn now has stayed the same; to be asked once an epoch (early-bird).

        Raises:
            ValueError: the lottery's method does not say what settled means.
        """
        if self._settling is None:
            raise ValueError("only level 0 of ss.EarlyBird can tell whether its ticket has settled")
        return self._settling.add(self.views())

    def state_dict(self) -> dict[str, Any]:
        """Where this level stands, beside the states of model, optimizer and sparsifier."""
        squares = None if self._squares is None else self._squares.means
        return {"step": self.step, "remembered": self.remembered, "squares": squares}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on within the level; the loop loads model, optimizer and, if it attached one, sparsifier."""
        self.step, self.remembered = state["step"], state["remembered"]
        self._squares = None if state["squares"] is None else Squares(state["squares"])
        self._resumed = True

    # -- the end of the level ----------------------------------------------------------------------------------

    def close(self) -> dict[str, Tensor]:
        """End the level: hooks are removed, the model is plain with its zeros in place; returns its weights.

        Raises:
            ValueError: the level made no step, weights were put off its mask, or another level has begun on them.
        """
        if self._ousted:
            raise ValueError(
                f"another level has begun on the weights of level {self.index}, which it ended: one lottery at a time "
                "trains a model; level.branch() trains a copy"
            )
        if self._open:
            try:
                self._check()
            finally:
                self._let_go()
        return snapshot(self.model)

    def _check(self) -> None:
        if not self.step:
            raise ValueError(
                f"level {self.index} saw no optimizer step over its weights: train level.model before going on"
            )
        if self._remember is not None and self.remembered is None:
            raise ValueError(
                f"rewind_step={self._remember} was never reached: level {self.index} ended after {self.step} steps"
            )
        for name, layer in self._layers.items():
            if is_sparse(layer.module):
                continue
            if self._sparsifier is None and layer.parameter is not self._parameters[name]:
                raise ValueError(
                    f"{name} was replaced while level {self.index} was trained: load weights without assign=True"
                )
            off = int((layer.parameter.detach()[~self.masks[name].to(layer.parameter.device)] != 0).sum())
            if off:
                raise ValueError(
                    f"{name} has {off} weights off the mask of level {self.index}: they were loaded or set after the last "
                    "step"
                )

    def views(self) -> dict[str, DenseView]:
        """The layers as the method sees them: weights, masks, sources, and root mean square gradients for "obd"."""
        views = {}
        for name in self._layers:
            if is_sparse(self._layers[name].module):
                weight = self._layers[name].module.dense_weight()  # type: ignore[operator]
            else:
                weight = self._layers[name].parameter.detach()
            source = self.ticket.sources.get(name)
            views[name] = DenseView(
                name,
                weight,
                self.masks[name].to(weight.device),
                None if source is None else source.reshape(-1).to(weight.device),
                None if self._squares is None else self._squares.root(name),
                geometry=self._layers[name].geometry,
            )
        return views

    # -- around every optimizer step ---------------------------------------------------------------------------

    def _held(self, optimizer: Optimizer) -> set[str]:
        params = {id(p) for group in optimizer.param_groups for p in group["params"]}
        return {name for name, layer in self._layers.items() if id(layer.parameter) in params}

    def _begin_anew(self, optimizer: Optimizer) -> None:
        """An optimizer that comes from another level begins this one without state."""
        if optimizer not in self._seen and not self._resumed:
            for parameter in self.model.parameters():
                _ = optimizer.state.pop(parameter, None)
        self._seen.add(optimizer)

    def _before(self, optimizer: Optimizer) -> None:
        if not self._held(optimizer):
            return
        self._begin_anew(optimizer)
        if self._squares is not None:
            self._squares.watch(self._layers, optimizer)

    def _after(self, optimizer: Optimizer) -> None:
        held = self._held(optimizer)
        if not held or overflow(optimizer):
            return
        if self._sparsifier is None:
            for name in held:
                self._sites[name].remask()
        trained = (name for name, layer in self._layers.items() if layer.parameter.requires_grad)
        if next(trained, next(iter(self._layers))) not in held:
            return  # with several optimizers, the one that holds the first layer that is not frozen is the clock
        self.step += 1
        if self.step == self._remember:
            state = snapshot(self.model) if self._sparsifier is None else self._dense_snapshot()
            self.remembered = state

    def _dense_snapshot(self) -> dict[str, Tensor]:
        assert self._sparsifier is not None
        names = self.ticket.weights
        state = {plain(name): tensor for name, tensor in self._sparsifier.dense_state_dict().items()}
        return {name: state[name].detach().clone() for name in names}


class _Listener:
    """Listens to all optimizers, filtered by who holds the level's weights; it does not keep the level alive."""

    def __init__(self, level: weakref.ref):
        self._level = level

    def before(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        level = self._level()
        if level is not None:
            level._before(optimizer)

    def after(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        level = self._level()
        if level is not None:
            level._after(optimizer)
