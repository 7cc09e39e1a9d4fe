"""Run a recipe: in its own folder, from where it stands. The same command again resumes, or finds it done."""

from __future__ import annotations

from typing import Any

from startsparse import artifact
from startsparse.training import checkpoint, loop
from startsparse.training.build import Bench, bench_of
from startsparse.training.files import write_atomic
from startsparse.training.folder import RunFolder
from startsparse.training.metrics import Stopwatch
from startsparse.training.progress import Progress, open_progress
from startsparse.training.recipe import Recipe


def run(recipe: Recipe, progress: bool = True) -> dict[str, Any]:
    """Train what a recipe describes and return its final figures.

    A run that was stopped at any moment goes on from its last checkpoint and ends in the same weights, masks,
    optimizer state and metrics as one that was not; a run that is done is not touched.

    Args:
        recipe: what to do.
        progress: show a bar (on a terminal) or a line per epoch.

    Raises:
        FolderError: the folder is of another recipe, or in use.
        CheckpointError: the checkpoint is damaged.
    """
    folder = RunFolder(recipe.folder)
    folder.check(recipe)
    result = folder.result
    if result is not None:
        return result
    bench = bench_of(recipe)  # whatever is wrong with the recipe is said before a folder is made
    with folder.lock():
        folder.claim(recipe)
        resume(bench, folder)
        show = open_progress(bench.job.settings.total_steps, bench.job.position.step, progress)
        try:
            train(bench, folder, show)
        finally:
            show.close()
        return finish(bench, folder)


def resume(bench: Bench, folder: RunFolder) -> None:
    """Go back to the last checkpoint, if there is one, and forget what was written after it."""
    length = 0
    if folder.checkpoint.exists():
        length = checkpoint.load(folder.checkpoint, bench.job, bench.sparsifier)
    folder.metrics.cut(length)


def train(bench: Bench, folder: RunFolder, show: Progress) -> None:
    """All steps that are left: metrics, validations and checkpoints between them."""
    job, train = bench.job, bench.recipe.train
    if bench.fusion is not None:
        write_atomic(folder.fused, f"{bench.fusion}\n".encode())
    watch = Stopwatch(job.position.step)
    for epoch_ended in loop.steps(job):
        step = job.position.step
        show.step(step)
        if step % train.log_every == 0 or job.done:
            row = job.running.take()
            loop.check_finite(row, step)
            folder.metrics.write(_row("train", bench) | row | movement(bench.sparsifier))
            folder.timing.write(watch.lap(step))
        with watch.paused():
            if (epoch_ended or job.done) and len(bench.dataset.validation):
                row = _row("validation", bench) | validation(bench)
                folder.metrics.write(row)
                show.validated(row)
            due = epoch_ended if train.checkpoint_every is None else step % train.checkpoint_every == 0
            if due or job.done:
                checkpoint.save(folder.checkpoint, job, bench.sparsifier, folder.metrics.length)


def validation(bench: Bench) -> dict[str, float]:
    """Loss and accuracy on the held-out part."""
    return loop.evaluate(bench.job.model, bench.dataset, bench.dataset.validation, bench.recipe.train.amp)


def last_validation(folder: RunFolder) -> dict[str, Any]:
    """The last validation row of the metrics, which is of the final step; without a held-out part, nothing."""
    done = [row for row in folder.metrics.rows() if row["kind"] == "validation"]
    return done[-1] if done else {"accuracy": None, "loss": None}


def finish(bench: Bench, folder: RunFolder) -> dict[str, Any]:
    """The one look at the test part, the compact file, and the figures."""
    recipe, sparsifier, model = bench.recipe, bench.sparsifier, bench.job.model
    test = loop.evaluate(model, bench.dataset, bench.dataset.test, recipe.train.amp)
    held_out = last_validation(folder)
    artifact.save(sparsifier if sparsifier is not None else model, folder.net)
    result = {
        "test_accuracy": test["accuracy"],
        "test_loss": test["loss"],
        "validation_accuracy": held_out["accuracy"],
        "validation_loss": held_out["loss"],
        "density": density(sparsifier),
        "live_weights": live_weights(bench),
        "parameters": bench.num_parameters,
        "steps": bench.job.position.step,
        "epochs": bench.job.position.epoch,
        "net_bytes": folder.net.stat().st_size,
        "seed": recipe.seed,
    }
    folder.write_result(result)
    return result


def density(sparsifier: Any) -> float:
    """Live over all weights of the sparse layers; 1 for a dense run."""
    return 1.0 if sparsifier is None else float(sparsifier.density)


def movement(sparsifier: Any) -> dict[str, Any]:
    """How the topology has moved, once it has: the share of weights that were ever live, of those that the last update
    replaced, dead units, and layer densities where these change."""
    if not hasattr(sparsifier, "dynamics"):
        return {}
    moved = sparsifier.dynamics(last=1)
    if not moved.steps:
        return {}
    figures = moved.summary()
    densities = figures.pop("density")
    return figures | ({"layer_density": densities} if sparsifier.method.moves_across_layers else {})


def live_weights(bench: Bench) -> int:
    """Live weights of the layers that may be sparse (of a dense run: all weights of all parameters but vectors)."""
    if bench.sparsifier is None:
        return sum(p.numel() for p in bench.job.model.parameters() if p.dim() > 1)
    return sum(int(mask.sum()) for mask in bench.sparsifier.masks.values())


def _row(kind: str, bench: Bench) -> dict[str, Any]:
    position, optimizer = bench.job.position, bench.job.optimizer
    return {
        "kind": kind,
        "step": position.step,
        "epoch": position.epoch,
        "lr": float(optimizer.param_groups[0]["lr"]),
        "density": density(bench.sparsifier),
    }
