"""The main job: train sparse from scratch on real data, and see what comes out of it.

LeNet-300-100 on Fashion-MNIST: dense, and started at 5 % density three ways, one of them also with truly sparse
execution; on the same budget, from the same initial weights, on the same batches. The nets are trained side by side,
each batch by each net in turn (the order rotates), so the step times are medians of one interleaved run.

    python examples/demo.py [--epochs 12] [--seed 0] [--out folder]
"""

from __future__ import annotations

import argparse
import re
import statistics
import tempfile
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from safetensors.torch import save_file

import startsparse as ss
from startsparse.training import data, loop, models, optim

DENSITY = 0.05
HEADERS = (
    "test\naccuracy", "live\nweights", "exact\ndensity", "dense file\nbytes", "compact file\nbytes",
    "step\nmeasured", "inference\nFLOPs", "training step\nFLOPs",
)  # fmt: skip


@dataclass
class Row:
    """One net of the comparison. Another method, source or execution is another line in ``rows``."""

    title: str
    method: ss.methods.Method | None = None
    source: ss.sources.Source | None = None
    execution: str = "masked"
    seconds: list[float] = field(default_factory=list)


def rows(seed: int) -> list[Row]:
    """What is compared."""
    inside = ss.RandomSource(density=0.3, distribution="erk", seed=seed)
    return [
        Row("dense"),
        Row("static random (ERK)", ss.Static(density=DENSITY, seed=seed)),
        Row("RigL in random 30 %", ss.RigL(density=DENSITY, seed=seed), inside),
        Row("SNIP", ss.SNIP(density=DENSITY, seed=seed)),
        Row("RigL, truly sparse", ss.RigL(density=DENSITY, seed=seed), inside, "sparse"),
    ]


def start(row: Row, dataset: data.Dataset, epochs: int, seed: int) -> tuple[loop.Job, ss.Sparsifier | None]:
    """A net at its initial weights, its optimizer, and what keeps it sparse."""
    torch.manual_seed(seed)
    model = models.make("lenet-300-100", input_shape=dataset.input_shape, classes=dataset.classes)
    optimizer = optim.make("sgd", model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    batches = data.Batches(dataset.train, 128, seed)
    steps = epochs * len(batches)
    sparse = None
    if row.method is not None:
        sparse = ss.attach(
            model, optimizer, row.method, source=row.source, total_steps=steps, execution=row.execution
        )
    rate = optim.LearningRate(optimizer, optim.schedule("cosine"), steps)
    return loop.Job(model, optimizer, rate, dataset, batches, loop.Settings(steps)), sparse


def train_side_by_side(compared: list[Row], jobs: list[loop.Job], console: Console) -> None:
    """Each net makes its next step in turn, until all are done; every step is timed."""
    runs = [loop.steps(job) for job in jobs]
    total = jobs[0].settings.total_steps
    with Progress(console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("training", total=total)
        for step in range(total):
            for i in range(len(runs)):
                turn = (i + step) % len(runs)
                begin = time.perf_counter()
                epoch_ended = next(runs[turn])
                compared[turn].seconds.append(time.perf_counter() - begin)
                if epoch_ended and i == len(runs) - 1:
                    scores = (
                        loop.evaluate(job.model, job.data, job.data.validation)["accuracy"] for job in jobs
                    )
                    shown = "  ".join(f"{100 * score:.2f}" for score in scores)
                    console.print(f"epoch {jobs[0].position.epoch:2}: validation accuracy % {shown}")
            progress.advance(task)


def flops(row: Row, job: loop.Job, dense: bool) -> tuple[str, str]:
    """Counted FLOPs (of one inference, of one training step of the batch), dense-gradient steps shared out."""
    method = row.method or ss.Static(density=1.0)
    inputs = torch.zeros(job.batches.size, *job.data.input_shape)
    with warnings.catch_warnings(action="ignore"):
        plan = ss.plan(
            models.make("lenet-300-100", input_shape=job.data.input_shape),
            method,
            source=row.source,
            total_steps=job.settings.total_steps,
            example_input=inputs,
        )
    counted = plan.flops
    assert counted is not None
    inference = counted.dense_inference if dense else counted.inference
    training = (counted.dense_training if dense else counted.training) * job.batches.size
    return f"{inference / 1e6:.3f} M", f"{training / 1e6:.1f} M"


def line(row: Row, job: loop.Job, sparse: ss.Sparsifier | None, folder: Path) -> list[str]:
    """One line of the table: the one look at the test data, and what was counted, measured and saved."""
    name = re.sub(r"\W+", "_", row.title).strip("_")
    dense = job.model.state_dict() if sparse is None else sparse.dense_state_dict()
    save_file(dense, folder / f"{name}.safetensors")
    ss.save(sparse if sparse is not None else job.model, folder / f"{name}.sparse.safetensors")
    total = sum(value.numel() for value in dense.values() if value.dim() > 1)
    live = total if sparse is None else sum(int(mask.sum()) for mask in sparse.masks.values())
    accuracy = loop.evaluate(job.model, job.data, job.data.test)["accuracy"]
    return [
        row.title,
        f"{100 * accuracy:.2f} %",
        f"{live:,}",
        f"{live / total:.4%}",
        f"{(folder / f'{name}.safetensors').stat().st_size:,}",
        f"{(folder / f'{name}.sparse.safetensors').stat().st_size:,}",
        f"{1000 * statistics.median(row.seconds):.3f} ms",
        *flops(row, job, dense=sparse is None),
    ]


def main() -> None:
    """Train, and print one table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="keep the trained nets here (default: a temporary folder)")
    arguments = parser.parse_args()
    torch.set_num_threads(
        1
    )  # a step this small gains little by a second thread, and loses much on a busy machine
    console, began = Console(), time.perf_counter()
    console.width = max(console.width, 124)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        dataset = data.load("fashion-mnist", seed=arguments.seed, fallback="digits")
    for warning in said:
        console.print(f"[bold yellow]{warning.message}[/]", highlight=False)
    compared = rows(arguments.seed)
    started = [start(row, dataset, arguments.epochs, arguments.seed) for row in compared]
    jobs = [job for job, _ in started]
    console.print(
        f"LeNet-300-100 on {dataset.name}, {arguments.epochs} epochs of {len(jobs[0].batches)} steps, side by side: "
        + ", ".join(row.title for row in compared)
    )
    train_side_by_side(compared, jobs, console)
    table = Table(title=f"LeNet-300-100 on {dataset.name}: dense, and started at {DENSITY:.0%} density")
    table.add_column("net")
    for header in HEADERS:
        table.add_column(header, justify="right", no_wrap=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.out or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for row, (job, sparse) in zip(compared, started, strict=True):
            table.add_row(*line(row, job, sparse, folder))
    console.print(table)
    console.print(
        f"step: median of {len(compared[0].seconds):,} steps of each net, all nets stepping in turn on one batch after "
        "another, on one thread. Masked execution computes densely: its step is the dense one "
        "plus the masking. FLOPs are counted, of the live weights: for one sample, and for a step of "
        f"{jobs[0].batches.size} samples, dense-gradient steps shared out.\n{time.perf_counter() - began:.0f} s in all."
    )


if __name__ == "__main__":
    main()
