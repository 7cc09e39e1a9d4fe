"""A claim: its script, its folder, and what has been found out about it so far."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from records import Record, key, read

VERDICTS = re.compile(r"\b(PASS|FAIL|CANNOT TELL)\b")


@dataclass(frozen=True)
class Claim:
    """A claim that is loaded. ``digest`` is of its script."""

    name: str
    folder: Path
    title: str
    source: str
    runs: list[dict[str, Any]]
    run: Callable[..., dict[str, Any]]
    judge: Callable[[list[Record]], str]
    digest: str

    @property
    def records_file(self) -> Path:
        """Where the raw records lie."""
        return self.folder / "records.jsonl"

    def records(self) -> list[Record]:
        """The records of the runs this claim asks for, in the order it asks for them."""
        found = {key(record["params"]): record for record in read(self.records_file)}
        return [found[key(params)] for params in self.runs if key(params) in found]

    def missing(self) -> list[dict[str, Any]]:
        """The runs that have no record yet."""
        done = {key(record["params"]) for record in self.records()}
        return [params for params in self.runs if key(params) not in done]

    def verdicts(self) -> list[str]:
        """The lines of its verdict that say how it stands."""
        file = self.folder / "verdict.md"
        if not file.exists():
            return []
        return [line.strip() for line in file.read_text().splitlines() if VERDICTS.search(line)]


def names(root: Path) -> list[str]:
    """The claims there are."""
    return sorted(file.parent.name for file in root.glob("*/claim.py"))


def load(name: str, root: Path) -> Claim:
    """Load a claim's script.

    Raises:
        ValueError: there is no such claim, or its script lacks something; both are named.
    """
    folder = root / name
    file = folder / "claim.py"
    if not file.is_file():
        raise ValueError(f"no claim {name!r} in {root}: there are {', '.join(names(root)) or 'none'}")
    spec = importlib.util.spec_from_file_location(f"claim_{name}", file)
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # data classes look for it there
    sys.modules[spec.name] = module  # dataclasses look there for the module they are made in
    spec.loader.exec_module(module)
    lacking = [part for part in ("TITLE", "SOURCE", "runs", "run", "judge") if not hasattr(module, part)]
    if lacking:
        raise ValueError(f"{file} does not define {', '.join(lacking)}")
    wanted = module.runs()
    for params in wanted:
        if "seed" not in params:
            raise ValueError(f"{file}: a run has no seed: {params}")
    if len({key(params) for params in wanted}) < len(wanted):
        raise ValueError(f"{file}: runs() names a run twice")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:12]
    return Claim(name, folder, module.TITLE, module.SOURCE, wanted, module.run, module.judge, digest)
