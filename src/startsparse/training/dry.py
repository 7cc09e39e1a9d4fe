"""Everything about a run but the training: is it whole, what will it make, and what is missing here."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from startsparse.training import build, data, models
from startsparse.training.folder import RunFolder
from startsparse.training.recipe import Recipe


@dataclass(frozen=True)
class DryRun:
    """What a dry run found.

    Attributes:
        facts: subject -> what is so, one line each.
        missing: what this machine lacks to start the run; empty if it could start.
        plan: of the method; None for a dense run.
    """

    facts: dict[str, str]
    missing: list[str]
    plan: Any

    def __str__(self) -> str:
        width = max(map(len, self.facts))
        lines = [f"{subject:<{width}}  {fact}" for subject, fact in self.facts.items()]
        lines += [f"warning: {warning}" for warning in (self.plan.warnings if self.plan is not None else ())]
        lines += [f"MISSING: {lack}" for lack in self.missing]
        return "\n".join([*lines, "not ready" if self.missing else "ready"])

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain data."""
        plan = None if self.plan is None else self.plan.as_dict()
        return {"facts": self.facts, "missing": self.missing, "ready": not self.missing, "plan": plan}


def check(recipe: Recipe) -> DryRun:
    """Build the model and the method of a recipe, try one example, count, and look for data, device and folder.

    Raises:
        ValueError: the run could not start anywhere: sizes that do not fit, a density its layers cannot hold, ...
        FolderError: its folder belongs to another recipe.
    """
    found = examine(recipe)
    found.facts["folder"] = f"{recipe.folder}, {_state(recipe, found.missing)}"
    return found


def examine(recipe: Recipe) -> DryRun:
    """As ``check``, whatever the folder.

    Raises:
        ValueError: as ``check``.
    """
    chosen, train, entry = recipe.data, recipe.train, recipe.data.entry()
    held_out = data.num_held_out(entry.examples, chosen.validation)
    examples = entry.examples - held_out
    steps, batch = build.total_steps(recipe, examples), min(chosen.batch_size, examples)
    per_epoch = examples // batch // train.accumulate
    if not per_epoch:
        raise ValueError(
            f"train.accumulate: an epoch of {examples // batch} batches holds no step of {train.accumulate}"
        )
    missing = [lack] if (lack := data.missing(chosen.name, chosen.root, chosen.options)) else []
    device = _device(recipe, missing)
    count, tried = _try_model(recipe, entry)
    plan = None if recipe.method is None else build.plan_of(recipe)
    facts = {
        "data": f"{chosen.name}, {examples:,} to train on, {held_out:,} held out, {entry.classes} classes",
        "model": f"{recipe.model.name}, {count:,} parameters, {tried}",
        "method": _method(recipe, plan),
        "optimizer": f"{recipe.optimizer.name}, {recipe.schedule.name} schedule",
        "steps": f"{steps:,} of {batch * train.accumulate} examples, {steps / per_epoch:.4g} epochs",
        "device": f"{device}, {'full precision' if train.amp == 'none' else train.amp}",
    }
    if plan is not None and plan.flops is not None:
        total = plan.flops.training * batch * train.accumulate * steps
        facts["counted"] = (
            f"{total:.3g} FLOPs of training in the sparse layers, {plan.flops.inference:.3g} of inference"
        )
    return DryRun(facts, missing, plan)


def _device(recipe: Recipe, missing: list[str]) -> str:
    try:
        return str(build.device_of(recipe))
    except ValueError as error:
        missing.append(str(error))
        return recipe.train.device


def _try_model(recipe: Recipe, entry: data.Entry) -> tuple[int, str]:
    """(parameters, what one example becomes); nothing is allocated for it."""
    with torch.device("meta"):
        model = models.make(**recipe.resolved()["model"]).eval()
        example = build.example_of(entry, 1)
    with torch.no_grad():
        outputs = tuple(model(example).shape)
    expected = (1, *(entry.shape if entry.is_text else ()), entry.classes)
    if outputs != expected:
        raise ValueError(
            f"model: {recipe.model.name} makes {outputs} of one example, {expected} was expected"
        )
    shapes = "x".join(map(str, entry.shape)), "x".join(map(str, expected[1:]))
    return sum(parameter.numel() for parameter in model.parameters()), f"{shapes[0]} -> {shapes[1]}"


def _method(recipe: Recipe, plan: Any) -> str:
    if recipe.method is None:
        return "none: a dense run"
    live, total = plan.num_final, plan.num_weights
    inside = "" if recipe.source is None else f" inside the source {recipe.source.name}"
    return f"{recipe.method.name}{inside}, {live:,} of {total:,} weights (density {live / total:.4g})"


def _state(recipe: Recipe, missing: list[str]) -> str:
    folder = RunFolder(recipe.folder)
    folder.check(recipe)
    place = next(place for place in (folder.path, *folder.path.absolute().parents) if place.exists())
    if not os.access(place, os.W_OK):
        missing.append(f"{Path(place)} cannot be written to: choose another `out`")
    if folder.result is not None:
        return "done already"
    return "it would go on from its checkpoint" if folder.checkpoint.exists() else "new"
