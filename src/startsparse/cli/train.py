"""Train what a recipe describes; the same command again resumes, or finds it done."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from startsparse.training.recipe import Recipe
    from startsparse.training.stages import Stages

EPILOG = """\
examples:
  startsparse train recipes/digits_quick.yaml
  startsparse train recipes/fashion_rigl_in_random.yaml method.density=0.02 seed=3
  startsparse train recipes/digits_quick.yaml --seeds 0..4
  startsparse train recipes/imagenet_resnet50_rigl.yaml --dry-run
  startsparse train recipes/fashion_snip.yaml method=null train.epochs=2 out=/tmp/runs

The run's folder is its identity: <out>/<recipe name>-<hash of all that is not default>. It holds recipe.yaml,
metrics.jsonl, timing.jsonl, checkpoint, result.json and net.sparse.safetensors.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of this command."""
    parser.add_argument("recipe", help="YAML file")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="such as method.density=0.02"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything but the training; 1 if not ready"
    )
    parser.add_argument("--seeds", help="several runs, one a seed, such as 0..4; finished ones are skipped")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.add_argument("--json", action="store_true", help="print the final figures as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Train and print the final figures."""
    from startsparse.training import dry, dry_stages, recipe, runs, stage_runs, stages
    from startsparse.training.seeds import parse_seeds

    seeds = None if arguments.seeds is None else parse_seeds(arguments.seeds)
    if stages.has_stages(recipe.read(arguments.recipe)):
        several = stages.load_all(arguments.recipe, arguments.overrides, seeds)
        if arguments.dry_run:
            found = dry_stages.check(several[0])
            print(json.dumps(found.as_dict()) if arguments.json else f"{several[0]}\n\n{found}")
            return 1 if found.missing else 0
        for chosen in several:
            result = stage_runs.run(chosen, progress=not arguments.quiet)
            _say(result, chosen, arguments.json)
        return 0
    recipes = recipe.load_all(arguments.recipe, arguments.overrides, seeds)
    if arguments.dry_run:
        found = dry.check(recipes[0])
        print(json.dumps(found.as_dict()) if arguments.json else found)
        return 1 if found.missing else 0
    for chosen in recipes:
        result = runs.run(chosen, progress=not arguments.quiet)
        _say(result, chosen, arguments.json)
    return 0


def _say(result: dict[str, Any], chosen: Recipe | Stages, as_json: bool) -> None:
    print(json.dumps(result | {"folder": str(chosen.folder)}) if as_json else _told(result, chosen))


def _told(result: dict[str, Any], chosen: Recipe | Stages) -> str:
    return (
        f"test accuracy {100 * result['test_accuracy']:.2f} %, {result['live_weights']:,} live weights "
        f"(sparsity {100 * (1 - result['density']):.2f} %), compact file {result['net_bytes']:,} bytes\n"
        f"all of it in {chosen.folder}"
    )
