"""The command line: sub-commands, and errors as one clear line."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
import warnings
from collections.abc import Sequence

import startsparse
from startsparse.cli import bench, build, cite, compare, embed, export, ls, plan, report, sweep, train

COMMANDS = (plan, train, sweep, compare, report, export, ls, cite, bench, build, embed)

EPILOG = """\
examples:
  startsparse ls                                          what there is: methods, models, data, runs
  startsparse plan recipes/fashion_static_erk.yaml        what it will be, before anything starts
  startsparse train recipes/digits_quick.yaml             a few seconds, no data to fetch
  startsparse train recipes/fashion_rigl_in_random.yaml method.density=0.02 seed=3
  startsparse sweep recipes/digits_quick.yaml --grid method.name=set,rigl --seeds 0..4
  startsparse compare runs --baseline set                 who is better, and with how many seeds one can tell
"""


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--traceback", action="store_true", help="show where an error comes from")
    top = argparse.ArgumentParser(
        prog="startsparse",
        description="Train neural networks that are sparse from the first step to the last.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"startsparse {startsparse.__version__}")
    commands = top.add_subparsers(dest="command", metavar="command", required=True)
    for command in COMMANDS:
        name = command.__name__.rpartition(".")[2]
        summary = (command.__doc__ or "").strip().partition("\n")[0]
        sub = commands.add_parser(
            name,
            help=summary,
            description=summary,
            epilog=command.EPILOG,
            parents=[common],
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.configure(sub)
        sub.set_defaults(run=command.run)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, or 2 after an error, or 130 when interrupted.

    Example:
        >>> main(["ls", "schedules"])
        schedules
          constant   Factor on the learning rate at each optimizer step; constant as it stands
          cosine     Half a cosine from 1 down to final
          linear     A line from 1 down to final
          multistep  Multiplied by gamma at each share of the run in at
          step       Multiplied by gamma each time another share every of the run has passed
        0
    """
    arguments = _parse(argv)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            return arguments.run(arguments)
    except KeyboardInterrupt:
        print("startsparse: stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read our output has left: nothing more to say, also not at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:  # noqa: BLE001 - the edge of the program: whatever it is, say it in a line
        if arguments.traceback:
            traceback.print_exc()
        print(f"startsparse: error: {_message(error)}", file=sys.stderr)
        return 2


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Arguments, with overrides wherever they stand: argparse wants all positional ones in a row."""
    top = parser()
    arguments, rest = top.parse_known_args(argv)
    if rest and (not hasattr(arguments, "overrides") or any(word.startswith("-") for word in rest)):
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        arguments.overrides = [*arguments.overrides, *rest]
    return arguments


def _message(error: Exception) -> str:
    """What is wrong, on one line; several mistakes stay several lines below it."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.strerror}: {error.filename}"
    if not isinstance(error, ValueError | OSError | RuntimeError | ArithmeticError | ImportError):
        return f"{type(error).__name__}: {error} (--traceback shows where)"
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[0] if len(lines) == 1 else "\n  ".join(["several things are wrong:", *lines])


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"startsparse: warning: {message}", file=sys.stderr)
