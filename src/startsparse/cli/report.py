"""Write a self-contained HTML page about each run: figures, curves, layers and masks."""

from __future__ import annotations

import argparse

EPILOG = """\
examples:
  startsparse report runs/digits_quick-1a2b3c4d                    writes report.html into the run's folder
  startsparse report runs/digits_quick-1a2b3c4d --output page.html
  startsparse report runs/*                                        a page for every run
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of this command."""
    parser.add_argument("folders", nargs="+", metavar="folder", help="folder of a finished run")
    parser.add_argument(
        "--output", help="the page, of a single run (default: report.html in the run's folder)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Write the pages and say where."""
    from startsparse.experiments.page import write

    if arguments.output is not None and len(arguments.folders) > 1:
        raise ValueError(f"--output is one page, and {len(arguments.folders)} runs are given: leave it out")
    for folder in arguments.folders:
        print(write(folder, arguments.output))
    return 0
