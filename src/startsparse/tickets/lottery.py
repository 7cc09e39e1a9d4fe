"""Train, prune, rewind, in levels: a lottery as a plain iterator over somebody else's training loop."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..costs import uses_per_sample
from ..execution.modules import refuse_sparse
from ..layers import Layer, find
from ..methods.iterative import IMP, EarlyBird
from ..sources import Source, describe, or_dense, refuse_locked
from .budget import Budget
from .early import Settling, pruned
from .level import Level
from .ticket import Ticket, snapshot

FORMAT = 1


@dataclass(frozen=True)
class Trained:
    """A level that is done: its live weights, optimizer steps and costs."""

    index: int
    num_active: int
    density: float
    steps: int
    budget: Budget


def lottery(
    model: nn.Module,
    method: IMP,
    *,
    source: Source | None = None,
    layers: str | Sequence[str] | None = None,
    execution: str = "masked",
    example_input: Any = None,
) -> Lottery:
    """Find a winning ticket: an iterator over levels, each of which the caller trains.

    Level 0 trains all of the source, and each further level fewer of its weights, from those the method rewinds to. Any
    optimizer that is made over ``level.model`` is seen; ``level.attach(optimizer)`` gives a ``Sparsifier`` besides.
    Inside a random source no level is dense: what that saves is in ``budget``.

    Args:
        model: trained in place, level by level; after the last one it holds the trained ticket.
        method: e.g. ``ss.IMP(density=0.05, rewind_step=500)``.
        source: where weights may live in all levels, e.g. ``ss.RandomSource(0.3)``; default: everywhere.
        layers: as for ``ss.attach``.
        execution: of ``level.attach``: "masked", "sparse" or "auto".
        example_input: a batch, to count FLOPs by.

    Raises:
        ValueError: a density that the levels jump over or the source cannot hold; while it runs, a level without a
            step or a ``rewind_step`` after the end of training.

    Example:
        >>> import startsparse as ss
        >>> model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 3))
        >>> for level in ss.lottery(model, ss.IMP(density=0.1, distribution="uniform", levels=2)):
        ...     optimizer = torch.optim.SGD(level.model.parameters(), lr=0.1)
        ...     for _ in range(4):
        ...         level.model(torch.randn(8, 20)).square().mean().backward()
        ...         optimizer.step()
        ...         optimizer.zero_grad()
        ...     print(level.index, round(level.density, 3), int((model[0].weight != 0).sum() < 600))
        0 1.0 0
        1 0.316 1
        2 0.1 1
    """
    if not isinstance(method, IMP):
        raise TypeError(
            f"method must be one of ss.methods.names('lottery'), such as ss.IMP(density=0.05), got {method!r}"
        )
    refuse_locked(source)
    return Lottery(model, method, or_dense(source), layers, execution, example_input)


def first_ticket(model: nn.Module, layers: Mapping[str, Layer], source: Source) -> Ticket:
    """All of a source on a model's weights as they are."""
    supports = {name: support.mask() for name, support in source.supports(layers).items()}
    sources = {name: mask.view(layers[name].shape) for name, mask in supports.items() if mask is not None}
    masks = {
        name: sources[name].clone() if name in sources else torch.ones(layer.shape, dtype=torch.bool)
        for name, layer in layers.items()
    }
    first = snapshot(model)
    return Ticket(masks, first, first, sources)


class Lottery:
    """The iterator that ``lottery`` returns.

    Attributes:
        counts: live weights of each level.
        trained: the levels that are done.
        ticket: mask and first weights of the level at work, in the end of the last one.
    """

    def __init__(
        self,
        model: nn.Module,
        method: IMP,
        source: Source,
        layers: str | Sequence[str] | None,
        execution: str,
        example_input: Any,
    ):
        self.model, self.method, self.source, self._execution = model, method, source, execution
        refuse_sparse(model)
        self._layers = find(model, layers)
        for name, layer in self._layers.items():
            if layer.parameter.is_meta:
                raise ValueError(
                    f"{name} is on the meta device: a lottery begins with weights, and it has none"
                )
        self._uses = None if example_input is None else uses_per_sample(model, self._layers, example_input)[0]
        self.ticket = first_ticket(model, self._layers, source)
        self.counts = method.counts(self.ticket.num_weights, self.ticket.num_active)
        self.trained: list[Trained] = []
        self._rewound: dict[str, Tensor] | None = None
        self._level: Level | None = None

    @property
    def num_levels(self) -> int:
        """Levels in all, level 0 included."""
        return len(self.counts)

    @property
    def budget(self) -> Budget:
        """What the levels that are done have cost together."""
        return sum((level.budget for level in self.trained), Budget())

    def __len__(self) -> int:
        return self.num_levels - len(self.trained)

    def __iter__(self) -> Lottery:
        return self

    def __next__(self) -> Level:
        level, self._level = self._level, None  # a level that ends badly begins again
        if level is not None:
            self._end(level)
        if len(self.trained) == self.num_levels:
            raise StopIteration
        self._level = self._begin(len(self.trained))
        return self._level

    def _begin(self, index: int) -> Level:
        method, last = self.method, self.num_levels - 1
        settles = isinstance(method, EarlyBird) and index == 0 and last > 0
        late = method.rewind == "weights" and index == 0 and last > 0
        return Level(
            index,
            self.model,
            self._layers,
            self.ticket,
            start_step=self._start_step(index),
            remember=method.rewind_step if late else None,
            squares=method.criterion == "obd" and index < last,
            execution=self._execution,
            settling=Settling(method, self.counts[1]) if settles else None,  # type: ignore[arg-type]
            uses=self._uses,
        )

    def _start_step(self, index: int) -> int:
        if index == 0 or self.method.rewind == "lr":
            return 0
        return self.method.rewind_step if self.method.rewind == "weights" else self.trained[0].steps

    def _end(self, level: Level) -> None:
        """Note what the level cost, prune, and put the next ticket together."""
        budget = level.budget
        final = level.close()
        if level.remembered is not None:
            self._rewound = level.remembered
        done = Trained(level.index, level.ticket.num_active, level.density, level.step, budget)
        if level.index + 1 < self.num_levels:
            views = level.views()
            changes = self.method.update(views, level.index, self.counts[level.index + 1], None)
            masks = pruned(views, changes)
            for name, mask in masks.items():
                if not bool(mask.any()) and bool(level.masks[name].any()):
                    warnings.warn(
                        f"{name} has no live weight left in level {level.index + 1}: no signal passes it. Raise the density "
                        "or choose a distribution that leaves it some",
                        stacklevel=3,
                    )
            kept = self.method.rewind != "weights"
            weights = final if kept else self._rewound
            assert weights is not None
            step = level.start_step + level.step if kept else self.method.rewind_step
            self.ticket = replace(self.ticket, masks=masks, weights=weights, step=step)
        self.trained.append(done)

    # -- state -------------------------------------------------------------------------------------------------

    def _describe(self) -> dict[str, Any]:
        return {
            "method": {"name": self.method.name} | self.method.hyper_parameters(),
            "source": describe(self.source),
        }

    def state_dict(self) -> dict[str, Any]:
        """Where the lottery stands, as plain data and tensors: the level at work begins again when it is loaded.

        Masks are stored, never drawn again. To go on within a level, save ``level.state_dict()`` too, beside model and
        optimizer.
        """
        return {
            "format": FORMAT,
            "describe": self._describe(),
            "ticket": self.ticket.state_dict(),
            "rewound": self._rewound,
            "trained": [
                [t.index, t.num_active, t.density, t.steps, t.budget.as_dict()] for t in self.trained
            ],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state_dict()``: the next level of the iterator is the one that was at work.

        Raises:
            ValueError: the state is of another method, source or architecture; the difference is named, and nothing
                has changed.
        """
        if not isinstance(state, dict) or state.get("format") != FORMAT:
            raise ValueError(f"this is not the state of a lottery of format {FORMAT}")
        mine = self._describe()
        for part in ("method", "source"):
            theirs = state["describe"][part]
            for key in [*mine[part], *theirs]:
                if theirs.get(key) != mine[part].get(key):
                    raise ValueError(
                        f"the state's {part}.{key} is {theirs.get(key)!r}, the lottery's is {mine[part].get(key)!r}: "
                        "go on with the same method and source"
                    )
        ticket = Ticket.of(state["ticket"])
        shapes = {name: tuple(mask.shape) for name, mask in self.ticket.masks.items()}
        theirs = {name: tuple(mask.shape) for name, mask in ticket.masks.items()}
        if theirs != shapes:
            raise ValueError(
                f"the state is of another architecture: its layers are {theirs}, the model's {shapes}"
            )
        if self._level is not None:
            raise ValueError("a lottery takes up a state before its first level")
        ticket.put(self.model)
        self.ticket, self._rewound = ticket, state["rewound"]
        self.trained = [
            Trained(index, active, density, steps, Budget(**budget))
            for index, active, density, steps, budget in state["trained"]
        ]
