"""Train a grid of runs from one recipe; finished ones are skipped, the same command again goes on."""

from __future__ import annotations

import argparse
import sys

EPILOG = """\
examples:
  startsparse sweep recipes/digits_quick.yaml --grid method.density=0.02,0.1 --seeds 0..4
  startsparse sweep recipes/digits_quick.yaml --grid method.name=set,rigl --seeds 0..4 train.epochs=20
  startsparse sweep recipes/fashion_dense.yaml --grid 'method=[null, {name: gmp, density: 0.1}]'
  startsparse sweep recipes/digits_quick.yaml model.name=mlp --grid 'model.widths=[[300, 100], [100, 100]]' --dry-run

Axes may also stand in the recipe, under sweep: {method.density: [0.02, 0.1]}. Every combination is checked before the
first one starts. A run that fails is told at the end and does not stop the others.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of this command."""
    parser.add_argument("recipe", help="YAML file")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="of all runs, such as train.epochs=5"
    )
    parser.add_argument("--grid", action="append", default=[], metavar="key=a,b", help="an axis of the grid")
    parser.add_argument("--seeds", help="such as 0..4 or 0,2,5; each combination with each of them")
    parser.add_argument("--workers", type=int, default=1, help="runs at once (default: %(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be run")


def run(arguments: argparse.Namespace) -> int:
    """Train what is missing, then say how it went; 1 if a run failed."""
    from startsparse.experiments import groups, results, sweep, tabulate
    from startsparse.training import reading, recipe
    from startsparse.training.seeds import parse_seeds

    if arguments.workers < 1:
        raise ValueError(f"--workers is at least 1, got {arguments.workers}")
    raw = reading.override(recipe.read(arguments.recipe), arguments.overrides)
    seeds = None if arguments.seeds is None else parse_seeds(arguments.seeds)
    recipes = sweep.expand(raw, dict(map(sweep.axis, arguments.grid)), seeds)
    if arguments.dry_run:
        print("\n".join(f"{one.folder} seed={one.seed}" for one in recipes))
        return 0
    failed = []
    for number, outcome in enumerate(sweep.run_all(recipes, arguments.workers), start=1):
        told = f"{number}/{len(recipes)} {outcome.recipe.folder}"
        if outcome.result is None:
            failed.append(f"{outcome.recipe.folder}: {outcome.error}")
            print(f"{told}: failed", flush=True)
        else:
            done = "was done" if outcome.skipped else "done"
            print(f"{told}: {done}, {_figures(outcome.result)}", flush=True)
    for line in failed:
        print(f"startsparse: error: {line}", file=sys.stderr)
    folders = [one.folder for one in recipes]
    if not failed and len(groups.groups(found := results.gather(folders))) > 1:
        print(f"\n{tabulate.tabulate(found).text()}")
    return int(bool(failed))


def _figures(result: dict) -> str:
    shown = {
        key: result[key] for key in ("validation_accuracy", "validation_loss") if result.get(key) is not None
    }
    return (
        ", ".join(f"{key.replace('_', ' ')} {value:.4f}" for key, value in shown.items())
        or "no held-out part"
    )
