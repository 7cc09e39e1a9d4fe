"""A chain of stages: each does something to one net, its output addressed by all that produced it.

A stage that is done is never done again, and recipes that begin alike share their beginning.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from startsparse.layers import find
from startsparse.sources import DenseSource
from startsparse.tables import table
from startsparse.tickets.lottery import first_ticket
from startsparse.training import build, data
from startsparse.training.recipe import Recipe

EXTENDED = "extended"  # the folder inside ``out`` of runs that were made longer for a comparison


@dataclass(frozen=True)
class Stage:
    """One stage of a recipe.

    Attributes:
        kind: a key of ``KEYS``, but "lottery", which stands for several stages.
        options: of a stage that does not train; of one that does, when it ends before its time.
        recipe: of one that does.
        keep: optimizer steps whose weights a later stage rewinds to.
        first: the step its schedule and the order of its data begin at.
        address: of its output: a hash of all that produced it.
    """

    kind: str
    options: Mapping[str, Any] = field(default_factory=dict)
    recipe: Recipe | None = None
    keep: tuple[int, ...] = ()
    first: int = 0
    address: str = ""

    def produces(self) -> dict[str, Any]:
        """What of the stage decides its output, as plain data."""
        trained = {} if self.recipe is None else {"recipe": self.recipe.identity()}
        return {
            "stage": self.kind,
            "options": dict(self.options),
            "keep": list(self.keep),
            "first": self.first,
        } | trained


@dataclass(frozen=True)
class Stages:
    """A recipe of several stages.

    Attributes:
        base: what all stages share.
        stages: in order, each with its address.
        described: the plain data they were made of.
        lengthened: steps by which the last stage is longer than described.
    """

    base: Recipe
    stages: tuple[Stage, ...]
    described: Mapping[str, Any] = field(default_factory=dict)
    lengthened: int = 0

    @property
    def name(self) -> str:
        """Of the recipe."""
        return self.base.name

    @property
    def seed(self) -> int:
        """Of the run."""
        return self.base.seed

    @property
    def folder(self) -> Path:
        """Where the result lies: the recipe's name and the address of its last stage, inside ``out``."""
        place = Path(self.base.out) / EXTENDED if self.lengthened else Path(self.base.out)
        return place / f"{self.base.name}-{self.stages[-1].address}"

    def output(self, stage: Stage) -> Path:
        """Where a stage's output lies; recipes that begin alike share it."""
        return Path(self.base.out) / "stages" / f"{stage.kind}-{stage.address}"

    def __str__(self) -> str:
        rows = [[s.kind, str(self.output(s)), json.dumps(dict(s.options))] for s in self.stages]
        return f"{table(['stage', 'output', 'options'], rows)}\nresult in {self.folder}"

    def resolved(self) -> dict[str, Any]:
        """Every value as plain data."""
        return {
            "base": self.base.resolved(),
            "stages": [s.produces() | {"address": s.address} for s in self.stages],
            "described": dict(self.described),
            "lengthened": self.lengthened,
        }

    def longer(self, steps: int) -> Stages:
        """The same stages, the last one ``steps`` optimizer steps longer, its schedule stretched over them.

        What comes before it is shared; the result lies in ``out`` / ``extended``.
        """
        last = self.stages[-1]
        assert last.recipe is not None
        train = last.recipe.train.model_copy(update={"epochs": None, "steps": steps_of(last) + steps})
        recipe = last.recipe.model_copy(update={"train": train})
        chain = [*self.stages[:-1], dataclasses.replace(last, recipe=recipe)]
        return dataclasses.replace(
            self, stages=addressed(chain, self.base), lengthened=self.lengthened + steps
        )


def first_of(base: Recipe) -> Any:
    """The ticket all stages begin with: all of the source, on the initial weights."""
    model = build.model_of(base)
    resolved = base.resolved()
    source = None if resolved["source"] is None else build.ss.sources.make(**resolved["source"])
    return first_ticket(model, find(model, base.layers), source or DenseSource())


def steps_of(stage: Stage) -> int:
    """Optimizer steps of a stage that trains, counted from the begin of its schedule."""
    assert stage.recipe is not None
    entry, chosen = stage.recipe.data.entry(), stage.recipe.data
    return build.total_steps(
        stage.recipe, entry.examples - data.num_held_out(entry.examples, chosen.validation)
    )


def addressed(stages: Sequence[Stage], base: Recipe) -> tuple[Stage, ...]:
    """Each stage with the hash of itself and all before it."""
    history: list[Any] = [base.identity()]
    out = []
    for stage in stages:
        history.append(stage.produces())
        digest = hashlib.sha256(json.dumps(history, sort_keys=True).encode()).hexdigest()[:12]
        out.append(dataclasses.replace(stage, address=digest))
    return tuple(out)
