"""The one description of a run. Every mistake in it is named by its path before anything starts.

Needs the extra ``startsparse[train]`` (pydantic, PyYAML).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

from startsparse.names import nearest
from startsparse.training.names import require

require("pydantic", "a recipe")
require("yaml", "a recipe")

from pydantic import Field, ValidationError, model_validator

from startsparse.training import options, reading
from startsparse.training.sections import Data, Named, Section, Train
from startsparse.training.seeds import parse_seeds


class RecipeError(ValueError):
    """A recipe that cannot be run; the message holds one line per mistake, each led by its path."""


class Recipe(Section):
    """A run, from data to the file it leaves.

    Example:
        >>> recipe = parse({"name": "quick", "data": {"name": "digits"}, "model": "lenet-300-100",
        ...                 "method": {"name": "rigl", "density": 0.1}, "optimizer": {"name": "sgd", "lr": 0.1},
        ...                 "train": {"epochs": 2}})
        >>> recipe.folder.name
        'quick-...'
        >>> parse({"data": {"name": "digit"}, "model": "mlp", "optimizer": "sgd", "train": {"epochs": 0}})
        Traceback (most recent call last):
        startsparse.training.recipe.RecipeError: data.name: unknown data set 'digit': did you mean 'digits'? ...
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "run"
    data: Data
    model: Named
    method: Named | None = None
    source: Named | None = None
    layers: str | list[str] | None = None
    power: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 1.0
    optimizer: Named
    schedule: Named = Named(name="cosine")
    train: Train
    seed: int = 0
    out: str = "runs"

    @model_validator(mode="after")
    def _source_needs_method(self) -> Recipe:
        if self.method is None and (self.source is not None or self.layers is not None):
            raise ValueError("method: without one, source and layers mean nothing (a dense run has neither)")
        if self.method is None and self.power != 1:
            raise ValueError("method: without one, power means nothing (a dense run has no sparse weights)")
        return self

    def identity(self) -> dict[str, Any]:
        """What makes this run another run than one of defaults: the values that differ, as plain data.

        Where it is written, where the data lie and how often it is saved are no part of it.
        """
        values = self.model_dump(mode="json", exclude_defaults=True, exclude=_ELSEWHERE)
        return values | self._each(options.non_default)

    def resolved(self) -> dict[str, Any]:
        """Every value, given or default, as plain data: what ``recipe.yaml`` of a run's folder holds.

        The model takes its input shape and number of classes from the data, method and source their seed from
        the run, unless they say otherwise.
        """
        return self.model_dump(mode="json") | self._each(options.resolve)

    def _each(self, view: Callable[..., dict[str, Any]]) -> dict[str, Any]:
        entry = self.data.entry()
        context = {"input_shape": entry.shape, "classes": entry.classes, "seed": self.seed}
        chosen: dict[str, Named | None] = {section: getattr(self, section) for section in options.KINDS}
        return {key: view(key, named.name, named.options, context) for key, named in chosen.items() if named}

    @property
    def folder(self) -> Path:
        """The run's folder: its name and 8 hex digits of its identity, inside ``out``."""
        text = json.dumps(self.identity(), sort_keys=True)
        return Path(self.out) / f"{self.name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


_ELSEWHERE: Any = {"name": True, "out": True, "data": {"root"}, "train": {"checkpoint_every"}}


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """The paths at which two resolved recipes describe different runs, with both values.

    An option that ``before`` does not know was added by a later version: at its default, it is no difference.

    Example:
        >>> differences({"seed": 1, "out": "a"}, {"seed": 2, "out": "b", "layers": None})
        ['seed: 1 in the folder, 2 now']
    """
    old, new = reading.flatten(before), reading.flatten(after)
    moved = {"name", "out", "data.root", "train.checkpoint_every"}
    return [
        f"{path}: {value!r} in the folder, {new.get(path, 'absent')!r} now"
        for path, value in old.items()
        if path not in moved and new.get(path, "absent") != value
    ]


def load(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe from a YAML file; ``key=value`` overrides win. Its name is the file's, unless it says one.

    Of a recipe of several ``seeds`` it is the first one's.

    Raises:
        RecipeError: with one line per mistake.
        FileNotFoundError: there is no such file.
    """
    return load_all(path, overrides)[0]


def load_all(
    path: str | Path, overrides: Sequence[str] = (), seeds: Sequence[int] | None = None
) -> list[Recipe]:
    """The recipes of a YAML file, one for each of its ``seeds`` (a list, or text such as ``0..4``).

    Args:
        path: of the file.
        overrides: ``key=value``.
        seeds: instead of those of the file.

    Raises:
        RecipeError: with one line per mistake.
        FileNotFoundError: there is no such file.
    """
    raw = reading.override(read(path), overrides)
    return [parse(one) for one in each_seed(raw, seeds)]


def read(path: str | Path) -> dict[str, Any]:
    """A recipe file as plain data, named after the file unless it says a name; unchecked."""
    raw = reading.read_yaml(Path(path))
    raw.setdefault("name", Path(path).stem)
    return raw


def each_seed(raw: dict[str, Any], seeds: Sequence[int] | None = None) -> list[dict[str, Any]]:
    """Plain data of one run for each seed: the given ones, else those under ``seeds``, else as it stands.

    Example:
        >>> [one["seed"] for one in each_seed({"seeds": "0..2"})]
        [0, 1, 2]
        >>> each_seed({"seeds": [0, 1], "seed": 3})
        Traceback (most recent call last):
        startsparse.training.recipe.RecipeError: seeds: give seed or seeds, not both
    """
    rest = {key: value for key, value in raw.items() if key != "seeds"}
    if seeds is None:
        if "seeds" not in raw:
            return [rest]
        if "seed" in raw:
            raise RecipeError("seeds: give seed or seeds, not both")
        try:
            seeds = parse_seeds(raw["seeds"])
        except ValueError as error:
            raise RecipeError(f"seeds: {error}") from error
    return [rest | {"seed": seed} for seed in seeds]


def parse(raw: dict[str, Any]) -> Recipe:
    """Check plain data and make a recipe of it.

    Raises:
        RecipeError: with one line per mistake.
    """
    if "stages" in raw:
        raise RecipeError("stages: a recipe of several stages is for train, sweep and compare, not for this")
    wrong: list[str] = []  # union types report each branch: one line per path is enough
    recipe: Recipe | None = None
    try:
        recipe = Recipe.model_validate(raw)
    except ValidationError as error:
        lines = [_line(problem) for problem in error.errors()]
        wrong = list({line.split(":")[0]: line for line in reversed(lines)}.values())[::-1]
    for section in options.KINDS:
        chosen = {"name": raw[section]} if isinstance(raw.get(section), str) else raw.get(section)
        if isinstance(chosen, dict) and isinstance(chosen.get("name"), str):
            rest = {key: value for key, value in chosen.items() if key != "name"}
            wrong += options.problems(section, chosen["name"], rest, _context(raw))
    if recipe is None or wrong:
        raise RecipeError("\n".join(dict.fromkeys(wrong)))
    return recipe


def _context(raw: dict[str, Any]) -> dict[str, Any]:
    """What models take from the data, where these can be told; what is wrong with them is said elsewhere."""
    try:
        entry = Data.model_validate(raw.get("data")).entry()
    except ValidationError:
        return {}
    return {"input_shape": entry.shape, "classes": entry.classes}


def _line(problem: Any) -> str:
    """One mistake, led by its path; parts of the path that pydantic made up (union branches) are left out."""
    path = [str(part) for part in problem["loc"] if str(part).isidentifier() or isinstance(part, int)]
    where = ".".join(part for part in path if part not in ("float", "int", "str", "Named"))
    if problem["type"] == "extra_forbidden":
        return f"{where}: unknown key: {nearest(path[-1], _keys(path[:-1]))}"
    if problem["type"] == "missing":
        return f"{where}: missing"
    message = problem["msg"].removeprefix("Value error, ")
    shown = problem.get("input")
    got = "" if isinstance(shown, dict) or problem["type"] == "value_error" else f", got {shown!r}"
    if problem["type"] == "value_error" and message.partition(": ")[0].isidentifier():
        return f"{where}.{message}".lstrip(".")  # it names the key itself
    return f"{where}: {message}{got}"


def _keys(path: list[str]) -> list[str]:
    section: Any = Recipe
    for part in path:
        section = section.model_fields[part].annotation
    return list(section.model_fields)
