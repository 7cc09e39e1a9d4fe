"""Show what a recipe will make of the model, layer by layer, and what to look out for, before anything starts."""

from __future__ import annotations

import argparse
import json

EPILOG = """\
examples:
  startsparse plan recipes/fashion_static_erk.yaml
  startsparse plan recipes/cifar_resnet20_rigl.yaml method.density=0.01 --json
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of this command."""
    parser.add_argument("recipe", help="YAML file")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help="such as method.density=0.02"
    )
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Plan and print; no data are needed."""
    from startsparse.training import build, recipe

    chosen = recipe.load(arguments.recipe, arguments.overrides)
    if chosen.method is None:
        count = sum(parameter.numel() for parameter in build.model_of(chosen).parameters())
        print(f"a dense run of {count:,} parameters: without a method, nothing is sparse")
        return 0
    plan = build.plan_of(chosen)
    if arguments.json:
        print(json.dumps(plan.as_dict()))
    else:
        print(plan)
        print(f"\nthe run would be {chosen.folder}")
    return 0
