"""Write one self-contained HTML page about a run: figures, curves, layers and masks."""

from __future__ import annotations

import argparse

EPILOG = """\
examples:
  startsparse report runs/digits_quick-1a2b3c4d                    writes report.html into the run's folder
  startsparse report runs/digits_quick-1a2b3c4d --output page.html
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of this command."""
    parser.add_argument("folder", help="folder of a finished run")
    parser.add_argument("--output", help="the page (default: report.html in the run's folder)")


def run(arguments: argparse.Namespace) -> int:
    """Write the page and say where."""
    from startsparse.experiments.page import write

    print(write(arguments.folder, arguments.output))
    return 0
