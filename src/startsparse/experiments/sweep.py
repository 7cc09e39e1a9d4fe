"""A grid of runs from one recipe: every combination checked before the first starts, finished ones skipped."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from startsparse.training import reading, recipe, runs, stage_runs, stages
from startsparse.training.folder import RunFolder
from startsparse.training.names import require
from startsparse.training.stage_chain import Stages

Axes = Mapping[str, Sequence[Any]]  # dotted path -> values
AnyRecipe = recipe.Recipe | Stages


@dataclass(frozen=True)
class Outcome:
    """What became of one run: its figures, or the error it ended with. ``skipped``: it was finished before."""

    recipe: AnyRecipe
    result: dict[str, Any] | None
    error: str = ""
    skipped: bool = False


def axis(assignment: str) -> tuple[str, list[Any]]:
    """Path and values of ``path=a,b,c`` or ``path=[a, b, c]``; values are YAML.

    Example:
        >>> axis("method.density=0.05,0.1"), axis("model.widths=[[300, 100], [100, 100]]")
        (('method.density', [0.05, 0.1]), ('model.widths', [[300, 100], [100, 100]]))
    """
    path, equals, text = assignment.partition("=")
    if not equals or not all(path.split(".")) or not text.strip():
        raise recipe.RecipeError(
            f"{assignment!r} is no axis: write path=a,b, such as method.density=0.05,0.1"
        )
    values = reading.parse_yaml(text)
    if not isinstance(values, list):
        values = [reading.parse_yaml(part) for part in text.split(",")]
    return path, values


def expand(
    raw: Mapping[str, Any], axes: Axes | None = None, seeds: Sequence[int] | None = None
) -> list[AnyRecipe]:
    """The recipe of every combination and seed, in the order of the axes, seeds last.

    Args:
        raw: of a recipe, as plain data; it may hold axes of its own under ``sweep``.
        axes: more of them; those of the same path win.
        seeds: of every combination, instead of the recipe's.

    Raises:
        RecipeError: an axis that is empty or changes nothing, or a combination that cannot be run; it is named.

    Example:
        >>> raw = {"data": "digits", "model": "mlp", "method": {"name": "set", "density": 0.1},
        ...        "optimizer": {"name": "sgd", "lr": 0.1}, "train": {"epochs": 1}}
        >>> raw["data"] = {"name": "digits"}
        >>> len(expand(raw, {"method.density": [0.1, 0.2], "method.name": ["set", "rigl"]}, seeds=[0, 1]))
        8
    """
    rest = {key: value for key, value in raw.items() if key != "sweep"}
    own = raw.get("sweep") or {}
    if not isinstance(own, Mapping) or not all(isinstance(values, list) for values in own.values()):
        raise recipe.RecipeError(f"sweep: a mapping of paths to lists of values was expected, got {own!r}")
    merged = dict(own) | dict(axes or {})
    for path, values in merged.items():
        if not values:
            raise recipe.RecipeError(f"sweep.{path}: no values")
    found: dict[Path, AnyRecipe] = {}
    for values in itertools.product(*merged.values()):
        chosen = dict(zip(merged, values, strict=True))
        made: dict[str, Any] = rest
        for path, value in chosen.items():
            made = reading.assign(made, path, value)
        for one in recipe.each_seed(made, seeds):
            try:
                parsed = stages.parse(one) if stages.has_stages(one) else recipe.parse(one)
            except recipe.RecipeError as error:
                lines = [f"{_told(chosen)}: {line}" if chosen else line for line in str(error).splitlines()]
                raise recipe.RecipeError("\n".join(lines)) from error
            if parsed.folder in found:
                raise recipe.RecipeError(
                    f"{_told(chosen)}: the same run as another combination: {parsed.folder}"
                )
            found[parsed.folder] = parsed
    return list(found.values())


def run_all(recipes: Sequence[AnyRecipe], workers: int = 1) -> Iterator[Outcome]:
    """Train all that are not finished, in order or several at once; one that fails does not stop the others.

    Args:
        recipes: what to train; each run resumes in its own folder.
        workers: runs at once. With more than one each has a process of its own and its share of the cores. Of recipes of
            several stages that begin alike one makes the beginning, and the others wait for it.

    Yields:
        What became of each, as it ends.
    """
    todo = []
    for one in recipes:
        result = RunFolder(one.folder).result
        if result is None:
            todo.append(one)
        else:
            yield Outcome(one, result, skipped=True)
    if workers == 1:
        yield from map(_here, todo)
        return
    threads = str(max(1, (os.cpu_count() or 1) // workers))
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(_apart, one, threads) for one in todo]
        try:
            for future in as_completed(futures):
                yield future.result()
        except (KeyboardInterrupt, GeneratorExit):
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _here(one: AnyRecipe) -> Outcome:
    try:
        if isinstance(one, Stages):
            return Outcome(one, stage_runs.run(one, progress=False))
        return Outcome(one, runs.run(one, progress=False))
    except (ValueError, RuntimeError, OSError, ArithmeticError) as error:
        return Outcome(one, None, str(error) or type(error).__name__)


def _apart(one: AnyRecipe, threads: str) -> Outcome:
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / f"{one.name}.yaml"
        plain = dict(one.described) if isinstance(one, Stages) else one.model_dump(mode="json")
        file.write_text(require("yaml", "a sweep").safe_dump(plain))
        done = subprocess.run(
            [sys.executable, "-m", "startsparse", "train", str(file), "--quiet"],
            env=os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads},
            capture_output=True,
            text=True,
            check=False,
        )
    result = RunFolder(one.folder).result
    if done.returncode or result is None:
        return Outcome(one, None, (done.stderr or done.stdout).strip() or f"exit code {done.returncode}")
    return Outcome(one, result)


def _told(chosen: Mapping[str, Any]) -> str:
    return ", ".join(f"{path}={value}" for path, value in chosen.items())
