"""Say what to cite for a method, as text or BibTeX."""

from __future__ import annotations

import argparse

from startsparse import methods

EPILOG = """\
examples:
  startsparse cite rigl
  startsparse cite rigl static --bibtex
  startsparse cite --all --bibtex
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of this command."""
    parser.add_argument(
        "methods", nargs="*", metavar="METHOD", help="names of methods, see startsparse ls methods"
    )
    parser.add_argument("--all", action="store_true", help="every method there is")
    parser.add_argument("--bibtex", action="store_true", help="BibTeX entries")


def run(arguments: argparse.Namespace) -> int:
    """Print the references of the methods."""
    from startsparse.experiments.cite import references

    names = methods.names() if arguments.all else arguments.methods
    if not names:
        raise ValueError("name a method, or --all; startsparse ls methods shows them")
    found = {name: references(name) for name in names}
    if arguments.bibtex:
        entries = [reference.bibtex() for several in found.values() for reference in several]
        by_key = {
            entry.partition("\n")[0]: entry for entry in reversed(entries)
        }  # of the same paper, the first one
        print("\n".join(dict.fromkeys(by_key[entry.partition("\n")[0]] for entry in entries)))
    else:
        print("\n".join(f"{name}: {one.text}" for name, several in found.items() for one in several))
    return 0
