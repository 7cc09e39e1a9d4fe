"""List what there is: methods, sources, distributions, models, data sets, optimizers, schedules and runs."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable

from startsparse import distributions, methods, sources
from startsparse.training import data, models, optim

EPILOG = """\
examples:
  startsparse ls                     all of it
  startsparse ls methods
  startsparse ls runs --out runs     the runs in a folder, and how far they are
"""

Rows = dict[str, str]


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of this command."""
    parser.add_argument("what", nargs="?", choices=sorted([*LISTS, "runs"]), help="one list only")
    parser.add_argument("--out", default="runs", help="folder of the runs (default: %(default)s)")


def run(arguments: argparse.Namespace) -> int:
    """Print the lists."""
    for title in [arguments.what] if arguments.what else [*LISTS, "runs"]:
        rows = _runs(arguments.out) if title == "runs" else LISTS[title]()
        print(f"{title} in {arguments.out}" if title == "runs" else title)
        width = max(map(len, rows), default=0)
        for name, summary in rows.items():
            print(f"  {name:<{width}}  {summary}".rstrip())
        if not rows:
            print("  none")
    return 0


def _methods() -> Rows:
    return {name: methods.get(name).summary for name in methods.names()}


def _sources() -> Rows:
    known = {
        kind.name: kind
        for kind in vars(sources).values()
        if hasattr(kind, "supports") and hasattr(kind, "name")
    }
    return {name: _first_line(known[name]) for name in sources.names()}


def _distributions() -> Rows:
    return {name: distributions.summary(name) for name in distributions.names()}


def _models() -> Rows:
    return {name: _first_line(models.TABLE[name]) for name in models.names()} | {
        f"{prefix}NAME": summary for prefix, summary in models.libraries.PREFIXES.items()
    }


def _data() -> Rows:
    return {name: data.TABLE[name].summary for name in data.names()} | {
        f"{prefix}...": kind.summary for prefix, kind in data.KINDS.items()
    }


def _optimizers() -> Rows:
    return {name: f"torch.optim.{kind.__name__}" for name, kind in sorted(optim.OPTIMIZERS.items())}


def _schedules() -> Rows:
    return {name: _first_line(kind) for name, kind in optim.SCHEDULES.items()}


def _first_line(thing: object) -> str:
    return (inspect.getdoc(thing) or "").partition("\n")[0].rstrip(".").replace("``", "")


def _runs(out: str) -> Rows:
    from startsparse.training.files import DamagedFile
    from startsparse.training.folder import RunFolder, find_runs

    def state(folder: RunFolder) -> str:
        try:
            result, rows = folder.result, folder.metrics.rows()
        except DamagedFile as error:
            return str(error)
        if result is not None:
            sparsity = 100 * (1 - result["density"])
            return f"done: test accuracy {100 * result['test_accuracy']:.2f} %, sparsity {sparsity:.2f} %"
        return f"stopped after step {rows[-1]['step']}" if rows else "just begun"

    return {folder.path.name: state(folder) for folder in find_runs(out)}


LISTS: dict[str, Callable[[], Rows]] = {
    "methods": _methods,
    "sources": _sources,
    "distributions": _distributions,
    "models": _models,
    "data": _data,
    "optimizers": _optimizers,
    "schedules": _schedules,
}
