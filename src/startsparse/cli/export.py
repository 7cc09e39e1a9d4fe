"""Write the net of a finished run to a file: dense weights, the compact file, or ONNX."""

from __future__ import annotations

import argparse

EPILOG = """\
examples:
  startsparse export runs/digits_quick-1a2b3c4d --to dense                plain safetensors, zeros in place
  startsparse export runs/digits_quick-1a2b3c4d --to sparse --output net.sparse.safetensors
  startsparse export runs/digits_quick-1a2b3c4d --to onnx                 needs startsparse[onnx]
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of this command."""
    parser.add_argument("folder", help="folder of a finished run")
    parser.add_argument("--to", required=True, choices=("dense", "sparse", "onnx"), help="the form")
    parser.add_argument("--output", help="the file (default: the run's name, in the present folder)")


def run(arguments: argparse.Namespace) -> int:
    """Export and say where to."""
    from startsparse.experiments.export import export

    place = export(arguments.folder, arguments.to, arguments.output)
    print(f"{place}: {place.stat().st_size:,} bytes")
    return 0
