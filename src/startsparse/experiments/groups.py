"""Runs that differ in nothing but the seed are a group; groups are told apart by what differs between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from startsparse.experiments.results import ResultsError, Run
from startsparse.names import nearest

_SAME_DATA = ("data.batch_size", "data.augment")  # these may differ: the examples and splits are the same
_FIRST = ("method.name", "method.density", "source.name", "source.density")


def groups(runs: Sequence[Run], by: Sequence[str] = ()) -> dict[str, dict[int, Run]]:
    """Label -> seed -> run.

    Args:
        runs: of one data set and split.
        by: paths of recipes, or sections, that tell the groups apart; default: whatever differs.

    Raises:
        ResultsError: runs of different data or splits, a path no recipe has, or runs of one group that differ in more
            than the seed.
    """
    check_data(runs)
    varying = differing(runs)
    chosen = [path for path in varying if not by or any(_within(path, section) for section in by)]
    known = sorted({path for run in runs for path in run.settings} | {p.partition(".")[0] for p in varying})
    for section in by:
        if not any(_within(path, section) for run in runs for path in run.settings):
            raise ResultsError(f"by: no run has {section!r}: {nearest(section, known)}")
    found: dict[tuple[str, ...], dict[int, Run]] = {}
    for run in runs:
        group = found.setdefault(tuple(_shown(run, path) for path in chosen), {})
        if run.seed in group:
            raise ResultsError(_twice(group[run.seed], run, by))
        group[run.seed] = run
    for group in found.values():
        if more := differing(list(group.values())):
            raise ResultsError(
                f"runs of one group differ in more than the seed: {_told(more)}; add that to by, or leave runs out"
            )
    firsts = [next(iter(group.values())) for group in found.values()]
    labelled = dict(zip(labels(firsts, chosen), found.values(), strict=True))
    return dict(sorted(labelled.items(), key=lambda item: (item[0] != "dense", item[0])))


def labels(runs: Sequence[Run], paths: Sequence[str]) -> list[str]:
    """A short label for each of several runs that are told apart by these paths.

    The method is named where it differs; other settings as far as they are needed to tell two runs apart.
    """
    order = [path for path in _FIRST if path in paths] + sorted(set(paths) - set(_FIRST))
    parts = [[_method(run)] if "method.name" in paths or not paths else [] for run in runs]
    for path in order:
        if path == "method.name":
            continue
        texts = [" ".join(words) for words in parts]
        same = [
            any(texts[i] == texts[j] and _shown(a, path) != _shown(b, path) for j, b in enumerate(runs))
            for i, a in enumerate(runs)
        ]
        for words, run, needed in zip(parts, runs, same, strict=True):
            if needed and path in run.settings:
                words.append(f"{_in_short(path)}={_shown(run, path)}")
    return [" ".join(words) or _method(run) for words, run in zip(parts, runs, strict=True)]


def _in_short(path: str) -> str:
    """A path as labels say it; of a stage, what it was told, wherever that stood.

    Example:
        >>> _in_short("method.density"), _in_short("stages[0].recipe.method.density"), _in_short("stages[1].options.step")
        ('density', 'stages[0].density', 'stages[1].step')
    """
    for part in (".recipe.method.", ".recipe.", ".options."):
        path = path.replace(part, ".")
    return path.removeprefix("method.")


def differing(runs: Sequence[Run]) -> list[str]:
    """The paths at which the settings of runs are not all the same."""
    paths = sorted({path for run in runs for path in run.settings})
    return [path for path in paths if len({_shown(run, path) for run in runs}) > 1]


def check_data(runs: Sequence[Run]) -> None:
    """Refuse runs of different data or splits.

    Raises:
        ResultsError: each of the two is named, and what differs.
    """
    for run in runs[1:]:
        for path in sorted({*runs[0].settings, *run.settings}):
            if (
                path.startswith("data.")
                and path not in _SAME_DATA
                and _shown(run, path) != _shown(runs[0], path)
            ):
                raise ResultsError(
                    f"runs on different data or splits cannot be compared: {path} is {_shown(runs[0], path)} in "
                    f"{runs[0].folder} and {_shown(run, path)} in {run.folder}"
                )


def _shown(run: Run, path: str) -> str:
    value: Any = run.settings.get(path)
    return "none" if value is None else str(value)


def _method(run: Run) -> str:
    return str(run.settings.get("method.name") or "dense")


def _within(path: str, section: str) -> bool:
    return path == section or path.startswith(f"{section}.")


def _twice(one: Run, other: Run, by: Sequence[str]) -> str:
    more = differing([one, other])
    why = (
        f"they differ in {_told(more)}; add that to by"
        if more and by
        else "they are the same run: leave one out"
    )
    return f"{one.folder} and {other.folder} are of one group and have the same seed {one.seed}: {why}"


def _told(paths: Sequence[str]) -> str:
    shown = ", ".join(paths[:4])
    return f"{shown} and {len(paths) - 4} more" if len(paths) > 4 else shown
