"""Measure truly sparse execution on this machine, beside dense, masked, torch CSR and other libraries installed."""

from __future__ import annotations

import argparse
import json

EPILOG = """\
examples:
  startsparse bench --quick                             about a minute
  startsparse bench linear conv --sparsity 0.9 0.99
  startsparse bench inference --batch 1 --json > latency.json

suites:
  linear, conv, pointwise    a training step of one layer
  steps, inference           whole nets: training steps, latency (onnxruntime too where installed)
  updates, memory            cost of topology updates; peak memory of training

Contenders run interleaved; samples in which the process was pre-empted are dropped ("dropped" is their share: above
a half, close other programs first). Compare the ratios of one row, not times of different runs.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of this command."""
    parser.add_argument("suites", nargs="*", metavar="suite", help="which to run (default: all)")
    parser.add_argument("--quick", action="store_true", help="few rows, to see that all is well")
    parser.add_argument("--threads", type=int, help="default: as many as torch takes")
    parser.add_argument("--seconds", type=float, help="about how long to measure each row")
    parser.add_argument("--cold", action="store_true", help="no untimed call before each sample")
    parser.add_argument("--size", type=int, nargs="+", help="widths, or channels of convolutions")
    parser.add_argument("--batch", type=int, nargs="+", help="items of a batch")
    parser.add_argument("--sparsity", type=float, nargs="+", help="shares of weights that are gone")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")


def run(arguments: argparse.Namespace) -> int:
    """Measure and print."""
    import torch

    from startsparse.benchmarking import suites
    from startsparse.benchmarking.timing import Options
    from startsparse.kernels import compile_node, keep_pages

    chosen = arguments.suites or list(suites.SUITES)
    if unknown := [name for name in chosen if name not in suites.SUITES]:
        raise ValueError(f"no suite {unknown[0]!r}: there are {', '.join(suites.SUITES)}")
    _check(arguments)
    options = Options(
        seconds=arguments.seconds if arguments.seconds is not None else 0.3 if arguments.quick else 2.0,
        cold=arguments.cold,
        quick=arguments.quick,
        sizes=tuple(arguments.size) if arguments.size else None,
        batches=tuple(arguments.batch) if arguments.batch else None,
        sparsities=tuple(arguments.sparsity) if arguments.sparsity else None,
    )
    before = torch.get_num_threads()
    torch.set_num_threads(arguments.threads or before)
    _ = compile_node()  # not in the background, which would be measured with the rest
    _ = keep_pages()  # as a training program would: else the largest activations measure page faults
    try:
        where = suites.environment()
        found = {}
        if not arguments.json:
            print(", ".join(f"{key} {value}" for key, value in where.items()))
        for name in chosen:
            found[name] = list(suites.run(name, options))
            if not arguments.json:
                print(f"\n{name}: {suites.SUMMARIES[name]}\n{_table(found[name])}", flush=True)
    finally:
        torch.set_num_threads(before)
    if arguments.json:
        print(json.dumps({"environment": where, "suites": found}))
    return 0


def _check(arguments: argparse.Namespace) -> None:
    for name in ("size", "batch"):
        if any(number < 1 for number in getattr(arguments, name) or ()):
            raise ValueError(f"--{name} must be at least 1")
    if any(not 0 < share < 1 for share in arguments.sparsity or ()):
        raise ValueError("--sparsity is a share of weights above 0 and below 1, such as 0.9")
    if arguments.threads is not None and arguments.threads < 1:
        raise ValueError("--threads must be at least 1")


def _table(rows: list[dict]) -> str:
    from startsparse.tables import table

    names = list(dict.fromkeys(name for row in rows for name in row))
    return table(names, [[_cell(name, row.get(name)) for name in names] for row in rows])


def _cell(name: str, value: object) -> str:
    if value is None:
        return "-"
    if name == "dropped":
        return f"{value:.0%}"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
