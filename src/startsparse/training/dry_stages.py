"""A dry run of several stages: each one's own, what a search would find to search, and where outputs would lie."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import startsparse as ss
from startsparse.training import build, dry
from startsparse.training.stage_chain import Stage, Stages, steps_of
from startsparse.training.stage_runs import num_done


@dataclass(frozen=True)
class StagesDryRun:
    """What a dry run found.

    Attributes:
        stages: (what the stage is, what was found) of those that train.
        facts: subject -> what is so of the whole.
        missing: what this machine lacks, each once.
    """

    stages: list[tuple[str, dry.DryRun]]
    facts: dict[str, str]
    missing: list[str]

    def __str__(self) -> str:
        parts = [f"{heading}\n{_without_end(found)}" for heading, found in self.stages]
        parts.append("\n".join(f"{subject}  {fact}" for subject, fact in self.facts.items()))
        ends = [f"MISSING: {lack}" for lack in self.missing]
        return "\n\n".join([*parts, "\n".join([*ends, "not ready" if self.missing else "ready"])])

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain data."""
        stages = [{"stage": heading} | found.as_dict() for heading, found in self.stages]
        return {"stages": stages, "facts": self.facts, "missing": self.missing, "ready": not self.missing}


def check(stages: Stages) -> StagesDryRun:
    """Try every stage that trains on fresh weights; those of a search are really handed to it, and put back.

    Raises:
        ValueError: a stage could not start anywhere.
    """
    found: list[tuple[str, dry.DryRun]] = []
    for index, stage in enumerate(stages.stages):
        if stage.recipe is None:
            continue
        try:
            one = _examine(stage)
        except ValueError as error:
            raise ValueError(f"stages[{index}].{error}") from error
        if index and stage.recipe.method is None:
            one.facts["method"] = "none: what is left of the stages before"
        found.append((f"stages[{index}]: {stage.kind}", one))
    missing = list(dict.fromkeys(lack for _, one in found for lack in one.missing))
    place = next(place for place in (stages.folder, *stages.folder.absolute().parents) if place.exists())
    if not os.access(place, os.W_OK):
        missing.append(f"{place} cannot be written to: choose another `out`")
    facts = {
        "order": ", ".join(stage.kind for stage in stages.stages),
        "result": str(stages.folder),
        "done": f"{num_done(stages)} of {len(stages.stages)} stages",
    }
    return StagesDryRun(found, facts, missing)


def _examine(stage: Stage) -> dry.DryRun:
    recipe = stage.recipe
    assert recipe is not None
    if stage.kind != "search":
        return dry.examine(recipe)
    found = dry.examine(recipe.model_copy(update={"method": None, "source": None, "layers": None}))
    method = ss.methods.make(**recipe.resolved()["method"])
    model, source = build.model_of(recipe), recipe.resolved()["source"]
    if method.needs:
        found.facts["method"] = f"{method.name}, whose first scores are measured when it begins"
        return found
    search = ss.search(
        model,
        method,
        source=None if source is None else ss.sources.make(**source),
        layers=recipe.layers,
        total_steps=steps_of(stage),
    )
    report = search.report()
    total = sum(row.num_weights for row in report.layers)
    found.facts["method"] = (
        f"{method.name}, {search.num_active:,} of {total:,} searched weights (density {report.density:.4g}; "
        f"{report.weights_density:.4g} of all weights, {', '.join(report.excluded) or 'nothing'} left out)"
    )
    _ = search.restore()
    return found


def _without_end(found: dry.DryRun) -> str:
    return str(dry.DryRun(found.facts, [], found.plan)).removesuffix("\nready")
