"""Compare runs seed by seed: paired differences with intervals, exact tests, and what they cost."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

EPILOG = """\
examples:
  startsparse compare runs                                          all runs in a folder, told apart by what differs
  startsparse compare runs --by method --baseline static            methods only; anything else that differs is an error
  startsparse compare runs/a-1f runs/b-2e --metric validation_loss
  startsparse compare runs --budget total                           cheaper runs train longer, until all saw as much
  startsparse compare runs --match flops --metric validation_accuracy --format markdown --output table.md

A verdict is "better" or "worse" where the interval leaves zero out, a t test adjusted for the number of groups (Holm)
agrees, and so does an exact test of the signs; else it is "cannot tell with n seeds". It takes five seeds at least.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of this command."""
    parser.add_argument(
        "runs", nargs="+", metavar="FOLDER", help="folders of runs, or folders that hold them"
    )
    parser.add_argument(
        "--by", action="append", default=[], help="what tells groups apart: method, method.density, ..."
    )
    parser.add_argument(
        "--metric", help="a figure of result.json (default: test_accuracy; validation_accuracy to match)"
    )
    parser.add_argument(
        "--baseline", help="the group to compare with (default: the dense one, else the first)"
    )
    parser.add_argument(
        "--match", choices=("samples", "flops", "seconds"), help="compare where this cost was equal"
    )
    parser.add_argument(
        "--budget",
        choices=("fine-tune", "total"),
        help="fine-tune: the final training must be equally long; total: train what cost less again, longer in the end, "
        "until all have seen as many samples",
    )
    parser.add_argument(
        "--confidence", type=float, default=0.95, help="of the intervals (default: %(default)s)"
    )
    parser.add_argument("--format", choices=("text", "markdown", "csv"), default="text")
    parser.add_argument("--output", type=Path, help="write the table to this file instead")


def run(arguments: argparse.Namespace) -> int:
    """Compare and print."""
    from startsparse.experiments import results, tabulate
    from startsparse.training.files import write_atomic

    metric = arguments.metric or ("validation_accuracy" if arguments.match else "test_accuracy")
    by = [path for given in arguments.by for path in given.split(",") if path]
    found = tabulate.tabulate(
        results.gather(arguments.runs),
        metric,
        arguments.baseline,
        by,
        arguments.match,
        arguments.confidence,
        arguments.budget,
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )
    table = getattr(found, arguments.format)().rstrip("\n") + "\n"
    if arguments.output is None:
        print(table, end="")
    else:
        write_atomic(arguments.output, table.encode())
    return 0
