"""Recipes of several stages, read and checked: train, prune, rewind and so on, one after the other on one net."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from startsparse import methods
from startsparse.methods.iterative import EarlyBird
from startsparse.names import nearest
from startsparse.searching.distillation import check_distillation
from startsparse.tickets.branches import BRANCHES
from startsparse.training import options, reading
from startsparse.training import recipe as recipes
from startsparse.training.recipe import Recipe, RecipeError
from startsparse.training.stage_chain import Stage, Stages, addressed, first_of, steps_of

TRAINING = {"train": None, "fine-tune": None, "transform": "attach", "search": "search"}
DISTILL = {"share": 0.5, "temperature": 2.0}
KEYS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(TRAINING, ("method", "optimizer", "schedule", "train")),
    "search": ("method", "optimizer", "schedule", "train", "distill"),
    "prune": ("density", "distribution", "criterion"),
    "rewind": ("step",),
    "branch": ("kind", "seed"),
    "lottery": ("method", "optimizer", "schedule", "train"),
}


def has_stages(raw: Mapping[str, Any]) -> bool:
    """Whether plain data describe several stages."""
    return "stages" in raw


def load_all(
    path: str | Path, overrides: Sequence[str] = (), seeds: Sequence[int] | None = None
) -> list[Stages]:
    """The recipes of several stages of a YAML file, one for each of its ``seeds``; ``key=value`` overrides win."""
    raw = reading.override(recipes.read(path), overrides)
    return [parse(one) for one in recipes.each_seed(raw, seeds)]


def parse(raw: dict[str, Any]) -> Stages:
    """Check plain data and make stages of it.

    Raises:
        RecipeError: with one line per mistake, led by its path.

    Example:
        >>> found = parse({"data": {"name": "digits"}, "model": "lenet-300-100", "optimizer": {"name": "sgd", "lr": 0.1},
        ...                "train": {"epochs": 2}, "stages": [{"stage": "train"}, {"stage": "prune", "density": 0.2},
        ...                {"stage": "rewind", "step": 5}, {"stage": "train"}]})
        >>> [(stage.kind, stage.keep, stage.first) for stage in found.stages]
        [('train', (5,), 0), ('prune', (), 0), ('rewind', (), 0), ('train', (), 5)]
    """
    listed = raw.get("stages")
    shared = {key: value for key, value in raw.items() if key != "stages"}
    if shared.get("method") is not None:
        raise RecipeError("method: with stages, each stage names its own")
    if "power" in shared:
        raise RecipeError("power: is of a run with one method, stages have none")
    inside = {key: shared.pop(key) for key in ("source", "layers") if key in shared}
    base = recipes.parse(shared)
    if not isinstance(listed, list) or not listed:
        raise RecipeError(
            "stages: a list of stages was expected, such as [{stage: train}, {stage: prune, density: 0.1}]"
        )
    wrong: list[str] = []
    found: list[Stage] = []
    for index, one in enumerate(listed):
        try:
            found += _stages(one, shared, inside, base)
        except RecipeError as error:
            wrong += [f"stages[{index}].{line}" for line in str(error).splitlines()]
    if not wrong:
        wrong = _order(found)
    if wrong:
        raise RecipeError("\n".join(wrong))
    base = base.model_copy(update=_checked_place(inside, shared))
    return Stages(base, addressed(_rewound(found), base), raw)


def _checked_place(inside: dict[str, Any], shared: dict[str, Any]) -> dict[str, Any]:
    """Source and layers, checked as those of a run with a method."""
    if not inside:
        return {}
    whole = recipes.parse(shared | inside | {"method": {"name": "static", "density": 1e-3}})
    return {key: getattr(whole, key) for key in inside}


def _stages(one: Any, shared: dict[str, Any], inside: dict[str, Any], base: Recipe) -> list[Stage]:
    if not isinstance(one, dict) or "stage" not in one:
        raise RecipeError(f"stage: missing, a stage is a mapping such as {{stage: train}}, got {one!r}")
    kind, given = one["stage"], {key: value for key, value in one.items() if key != "stage"}
    if kind not in KEYS:
        raise RecipeError(f"stage: unknown stage {kind!r}: {nearest(str(kind), list(KEYS))}")
    for key in given:
        if key not in KEYS[kind]:
            raise RecipeError(f"{key}: {kind} has no such key: {nearest(key, KEYS[kind])}")
    if kind == "lottery":
        return _lottery(given, shared, inside, base)
    if kind not in TRAINING:
        return [Stage(kind, _plain(kind, given))]
    distill = _distill(given.pop("distill", None))
    chosen = _with(shared, given)
    wanted = TRAINING[kind]
    if wanted and chosen.method is None:
        raise RecipeError(f"method: {kind} needs one of {', '.join(methods.names(wanted))}")
    if chosen.method is not None:
        has = methods.get(chosen.method.name).kind
        if has != (wanted or "attach"):
            raise RecipeError(
                f"method: {chosen.method.name} is a {has} method, {kind} takes one of kind {wanted or 'attach'}"
            )
    return [Stage(kind, distill, recipe=chosen)]


def _distill(given: Any) -> dict[str, Any]:
    """The option of a search that also learns from its dense net, checked; a number is the share."""
    if given is None:
        return {}
    options = {"share": given} if isinstance(given, int | float) else given
    if not isinstance(options, dict):
        raise RecipeError(f"distill: a share such as 0.5, or {{share: 0.5, temperature: 2}}, got {given!r}")
    for key in options:
        if key not in DISTILL:
            raise RecipeError(f"distill.{key}: no such option: {nearest(str(key), list(DISTILL))}")
    chosen = {
        key: float(value) if type(value) is int else value for key, value in (DISTILL | options).items()
    }
    try:
        check_distillation(**chosen)
    except ValueError as error:
        raise RecipeError(f"distill.{error}") from error
    return {"distill": chosen}


def _with(shared: dict[str, Any], given: dict[str, Any]) -> Recipe:
    """The recipe of a stage: what it says over what all share."""
    train = dict(shared.get("train") or {})
    mine = dict(given.get("train") or {})
    if {"epochs", "steps"} & mine.keys():
        train = {key: value for key, value in train.items() if key not in ("epochs", "steps")}
    return recipes.parse(shared | given | {"train": train | mine})


def _plain(kind: str, given: dict[str, Any]) -> dict[str, Any]:
    """The options of a stage that does not train, with their defaults."""
    if kind == "prune":
        if "density" not in given:
            raise RecipeError("density: prune needs it")
        problems = options.problems("method", "imp", given | {"levels": 1})
        if problems:
            raise RecipeError("\n".join(line.removeprefix("method.") for line in problems))
        return _prune(given["density"], given.get("distribution", "global"), given.get("criterion"))
    if kind == "rewind":
        step = given.get("step", 0)
        if isinstance(step, bool) or not isinstance(step, int) or step < 0:
            raise RecipeError(f"step: rewind goes to an optimizer step, an int >= 0, got {step!r}")
        return {"step": step}
    if given.get("kind") not in BRANCHES:
        raise RecipeError(
            f"kind: unknown branch {given.get('kind')!r}: {nearest(str(given.get('kind')), list(BRANCHES))}"
        )
    return {"kind": given["kind"], "seed": given.get("seed", 0)}


def _prune(density: float, distribution: Any, criterion: str | None) -> dict[str, Any]:
    """The options of a pruning; the usual criterion is left out."""
    named = {"criterion": criterion} if criterion not in (None, "magnitude") else {}
    return {"density": density, "distribution": distribution} | named


def _lottery(
    given: dict[str, Any], shared: dict[str, Any], inside: dict[str, Any], base: Recipe
) -> list[Stage]:
    """All levels of a lottery, each as its stages."""
    chosen = _with(shared, given)
    if chosen.method is None or methods.get(chosen.method.name).kind != "lottery":
        raise RecipeError(f"method: lottery needs one of {', '.join(methods.names('lottery'))}")
    method = methods.make(**chosen.resolved()["method"])
    bare = chosen.model_copy(update={"method": None})
    place = base.model_copy(update=_checked_place(inside, shared))
    try:
        ticket = first_of(place)
        counts = method.counts(ticket.num_weights, ticket.num_active)
    except ValueError as error:
        raise RecipeError(f"method: {error}") from error
    prunings = [
        _prune(count / ticket.num_weights, method.distribution, method.criterion) for count in counts[1:]
    ]
    settle: dict[str, Any] = {}
    if isinstance(method, EarlyBird) and prunings:
        if method.criterion != "magnitude":
            raise RecipeError(
                "method.criterion: between epochs only weights are looked at: 'magnitude' alone"
            )
        settle = {"until_settled": prunings[0] | {"window": method.window, "tolerance": method.tolerance}}
    stages = [Stage("train", settle, recipe=bare)]
    for pruning in prunings:
        stages.append(Stage("prune", pruning))
        stages += [Stage("rewind", {"step": method.rewind_step})] if method.rewind == "weights" else []
        stages.append(Stage("train", recipe=bare))
    return stages


def _order(stages: list[Stage]) -> list[str]:
    """What is wrong with the stages' order."""
    if stages[-1].recipe is None:
        return [f"stages: the last one must train, it is {stages[-1].kind!r}"]
    wrong, trained, most = [], None, 1.0
    for stage in stages:
        density = _density(stage)
        if density is not None and density > most:
            wrong.append(f"stages: {stage.kind} at density {density:g}, but an earlier one leaves {most:g}")
        most = min(most, density or most)
        if stage.recipe is not None and trained is None:
            trained = stage
        if stage.kind == "rewind" and stage.options["step"]:
            total = None if trained is None else steps_of(trained)
            if total is None or stage.options["step"] > total:
                have = "no stage has trained yet" if total is None else f"the first one trains {total} steps"
                wrong.append(f"stages: rewind to step {stage.options['step']}, but {have}")
    return wrong


def _density(stage: Stage) -> float | None:
    """The share of the weights that a stage leaves; None where it is not known before."""
    if stage.kind == "prune":
        return stage.options["density"]
    if stage.kind == "search" or stage.recipe is None or stage.recipe.method is None:
        return None
    return methods.make(**stage.recipe.resolved()["method"]).density


def _rewound(stages: list[Stage]) -> list[Stage]:
    """The first training keeps the weights that are rewound to; what follows a rewinding begins at its step."""
    keep = tuple(sorted({s.options["step"] for s in stages if s.kind == "rewind"} - {0}))
    out, first, trained = [], 0, False
    for stage in stages:
        if stage.kind == "rewind":
            first = stage.options["step"]
        if stage.kind == "branch" and stage.options["kind"] in ("reinit", "random"):
            first = 0
        if stage.recipe is None:
            out.append(stage)
            continue
        out.append(Stage(stage.kind, stage.options, stage.recipe, () if trained else keep, first))
        first, trained = 0, True
    return out
