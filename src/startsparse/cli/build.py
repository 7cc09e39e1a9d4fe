"""Compile the sparse kernels and their autograd node for this machine, now rather than at first use."""

from __future__ import annotations

import argparse

EPILOG = """\
example:
  startsparse build

Nobody has to: kernels are part of the installation or compiled at first use, and the autograd node is compiled in the
background (it takes 15 seconds, and serves processes that begin afterwards). Before measuring, or in an image that
others will use, it is better done at once. Exit code 1: something could not be compiled; it says what and why, and
training works all the same, more slowly.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """This command has no arguments."""


def run(arguments: argparse.Namespace) -> int:
    """Compile what is missing, and say what there is."""
    from startsparse.kernels import backend, cache_folder, compile_node

    kernels = backend().name == "native"
    print(f"kernels: {'compiled' if kernels else 'torch computes instead'}")
    reason = compile_node()
    print(f"autograd node: {f'Python, since {reason}' if reason else f'compiled, in {cache_folder()}'}")
    return 0 if kernels and reason is None else 1
