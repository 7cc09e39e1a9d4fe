"""Finished runs of several stages, seen as runs: what they are called, what they were told, how long they end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from startsparse.training import reading
from startsparse.training.files import read_json

FILE = "stages.json"


def is_staged(folder: Path) -> bool:
    """Whether a folder holds a run of several stages."""
    return (folder / FILE).is_file()


def read_file(folder: Path) -> dict[str, Any]:
    """The chain of a run's stages, as plain data."""
    return read_json(folder / FILE)


def settings(told: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted path -> value: of what all stages share, and of each stage; its method is the chain in short."""
    shared = reading.flatten(told["base"])
    for index, stage in enumerate(told["stages"]):
        own = {key: value for key, value in stage.items() if key != "address"}
        own["recipe"] = {key: value for key, value in stage.get("recipe", {}).items() if key != "seed"}
        shared |= reading.flatten({f"stages[{index}]": own})
    return shared | {"method.name": in_short([_name(stage) for stage in told["stages"]])}


def _name(stage: Mapping[str, Any]) -> str:
    method = (stage.get("recipe") or {}).get("method")
    if method is not None:
        return str(method["name"])
    options = stage["options"]
    return "early-bird" if "until_settled" in options else str(options.get("kind", stage["stage"]))


def in_short(names: Sequence[str]) -> str:
    """The names of stages, what is repeated said once.

    Example:
        >>> in_short(["train", "prune", "rewind", "train", "prune", "rewind", "train"])
        '2 x (train, prune, rewind), train'
        >>> in_short(["rst", "fine-tune"])
        'rst, fine-tune'
    """
    told, at = [], 0
    while at < len(names):
        period, times = max(
            ((p, _times(names, at, p)) for p in range(2, 5)),
            key=lambda found: (found[1] > 1, found[0] * found[1]),
        )
        if times > 1:
            told.append(f"{times} x ({', '.join(names[at : at + period])})")
            at += period * times
        else:
            told.append(names[at])
            at += 1
    return ", ".join(told)


def _times(names: Sequence[str], at: int, period: int) -> int:
    """How often the next ``period`` names stand there in a row."""
    one, times = list(names[at : at + period]), 1
    while len(one) == period and list(names[at + times * period : at + (times + 1) * period]) == one:
        times += 1
    return times
