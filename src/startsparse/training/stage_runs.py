"""Run the stages of a recipe: what is done is not done again, what was killed goes on, the test part is looked at once."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import startsparse as ss
from startsparse import artifact
from startsparse.names import plain
from startsparse.searching.begin import classifier
from startsparse.sources import MaskSource
from startsparse.tickets.branches import branch
from startsparse.tickets.budget import Budget
from startsparse.tickets.given import Given
from startsparse.tickets.ticket import Ticket, snapshot
from startsparse.training import build, loop, optim, runs
from startsparse.training.files import load_tree, read_json, save_tree, write_atomic
from startsparse.training.folder import FolderError, RunFolder, environment
from startsparse.training.progress import open_progress
from startsparse.training.recipe import Recipe, differences
from startsparse.training.stage_chain import Stage, Stages, first_of, steps_of
from startsparse.training.stage_pruning import Settled, prune

OUTPUT = "output"
MEASURED = 16  # batches


@dataclasses.dataclass(frozen=True)
class Output:
    """What a stage hands on.

    Args:
        ticket: masks and weights.
        kept: optimizer step -> weights a later stage rewinds to.
        costs: of all stages so far.
    """

    ticket: Ticket
    kept: dict[int, dict[str, Tensor]]
    costs: Budget

    def state_dict(self) -> dict[str, Any]:
        """Plain data and tensors."""
        return {"ticket": self.ticket.state_dict(), "kept": self.kept, "costs": self.costs.as_dict()}

    @classmethod
    def of(cls, state: dict[str, Any]) -> Output:
        """The inverse of ``state_dict``."""
        return cls(Ticket.of(state["ticket"]), state["kept"], Budget(**state["costs"]))


def run(stages: Stages, progress: bool = True) -> dict[str, Any]:
    """Run what is left of a recipe's stages and return the final figures.

    Raises:
        FolderError: the folder is of another recipe, or in use.
        CheckpointError: a checkpoint is damaged.
    """
    folder = RunFolder(stages.folder)
    _check(folder, stages)
    if folder.result is not None:
        return folder.result
    with folder.lock():
        write_atomic(folder.path / "stages.json", _text(stages))
        done = Output(first_of(stages.base), {}, Budget())
        for stage in stages.stages:
            done = _stage(stages, stage, done, progress)
        return _finish(folder, stages, done)


def _check(folder: RunFolder, stages: Stages) -> None:
    file = folder.path / "stages.json"
    if file.exists():
        before, now = (_flat(resolved) for resolved in (read_json(file), json.loads(_text(stages))))
        found = differences(before, now)
        if found:
            raise FolderError(
                f"{folder.path} belongs to another recipe: {'; '.join(found)}. Remove the folder or choose another `out`"
            )


def _flat(resolved: dict[str, Any]) -> dict[str, Any]:
    stages = {f"stages[{index}]": stage for index, stage in enumerate(resolved["stages"])}
    base = {key: value for key, value in resolved["base"].items() if key not in ("name", "out")}
    return base | stages


def _text(stages: Stages) -> bytes:
    return json.dumps(stages.resolved(), indent=2).encode() + b"\n"


def _stage(stages: Stages, stage: Stage, before: Output, progress: bool) -> Output:
    """A stage's output: as it was left, made now, or waited for where another run that begins alike is at it."""
    folder = RunFolder(stages.output(stage))
    file = folder.path / OUTPUT
    if file.exists():
        return Output.of(load_tree(file))
    with folder.lock(wait=True):
        if file.exists():
            return Output.of(load_tree(file))
        made = _train(stage, before, folder, progress) if stage.recipe else _change(stages, stage, before)
        save_tree(file, made.state_dict())
    return made


def _change(stages: Stages, stage: Stage, before: Output) -> Output:
    """Prune, rewind or branch: no training."""
    ticket, options = before.ticket, stage.options
    if stage.kind == "prune":
        ticket = prune(_trained_by(stages, stage), ticket, **options)
    elif stage.kind == "rewind":
        step = options["step"]
        ticket = dataclasses.replace(ticket, weights=before.kept[step] if step else ticket.initial, step=step)
    else:
        ticket = branch(options["kind"])(ticket, options["seed"])
    return dataclasses.replace(before, ticket=ticket)


def _trained_by(stages: Stages, stage: Stage) -> Recipe:
    """The recipe of the last training before a stage; of none, what all stages share."""
    earlier = stages.stages[: stages.stages.index(stage)]
    return next((one.recipe for one in reversed(earlier) if one.recipe is not None), stages.base)


def _train(stage: Stage, before: Output, folder: RunFolder, progress: bool) -> Output:
    """Train, transform, fine-tune or search; from a checkpoint, if there is one."""
    recipe, ticket = stage.recipe, before.ticket
    assert recipe is not None
    bench = build.bench_of(recipe.model_copy(update={"method": None}))
    job = bench.job
    ticket.put(job.model)
    per_epoch = loop.steps_per_epoch(job.batches, job.settings.accumulate)
    job.position = loop.Position(
        stage.first, stage.first // per_epoch, stage.first % per_epoch * job.settings.accumulate
    )
    method = None if recipe.method is None else ss.methods.make(**recipe.resolved()["method"])
    if stage.kind == "search":
        bench.sparsifier = _searched(stage, bench, ticket, method)
    elif method is not None or ticket.num_active < ticket.num_weights:
        bench.sparsifier = ss.attach(
            job.model,
            job.optimizer,
            method or Given(ticket.density, masks=ticket.masks),
            source=MaskSource(ticket.masks) if method is not None else MaskSource(ticket.sources),
            total_steps=job.settings.total_steps,
            layers=list(ticket.masks),
            execution=recipe.train.execution,
        )
        job.probes = bench.sparsifier.probes
        bench.fusion = build.fuse(job, bench.sparsifier)
    until = stage.options.get("until_settled")
    settled = None if until is None else Settled(folder.path, ticket, **until)
    keeper = job.optimizer.register_step_post_hook(
        lambda *_: _after_step(stage, bench, folder, ticket, settled)
    )
    folder.claim(recipe)
    runs.resume(bench, folder)
    job.stopped = settled is not None and settled.after(job.position.epoch - 1)
    show = open_progress(job.settings.total_steps, job.position.step, progress)
    try:
        runs.train(bench, folder, show)
    finally:
        show.close()
        keeper.remove()
    kept = before.kept | {step: load_tree(folder.path / f"step-{step}") for step in stage.keep}
    masks = dict(ticket.masks)
    if stage.kind == "search":
        masks |= bench.sparsifier.finish([job.data.normalise(x) for x, _ in _batches(job)])
    elif bench.sparsifier is not None:
        masks = {name: mask.detach().cpu().clone() for name, mask in bench.sparsifier.masks.items()}
        _ = bench.sparsifier.detach()
    weights = {name: tensor.cpu() for name, tensor in snapshot(job.model).items()}
    after = dataclasses.replace(ticket, masks=masks, weights=weights, step=job.position.step)
    seconds = sum(row["seconds"] for row in folder.timing.rows())
    costs = _costs(recipe, ticket, method, stage, job.position.step)
    return Output(after, kept, before.costs + dataclasses.replace(costs, seconds=seconds))


def _searched(stage: Stage, bench: build.Bench, ticket: Ticket, method: Any) -> Any:
    """The search of a stage, its scores in the optimizer's hands."""
    job, recipe = bench.job, stage.recipe
    assert recipe is not None
    whole = ticket.num_active == ticket.num_weights
    found = ss.search(
        job.model,
        method,
        source=None if whole else MaskSource(ticket.masks),
        total_steps=job.settings.total_steps,
        layers=None if whole else list(ticket.masks),
        **_first_batches(method, job),
    )
    if "distill" in stage.options:
        job.distill = ss.Distillation(found, **stage.options["distill"])
    named = recipe.resolved()["optimizer"]
    job.optimizer = optim.make(named.pop("name"), found.scores(), **named)
    job.rate = optim.LearningRate(job.optimizer, job.rate.schedule, job.settings.total_steps)
    return found


def _first_batches(method: Any, job: loop.Job) -> dict[str, Any]:
    """What a search's first scores are measured on, where they are: a few batches, and the loss."""
    needed = build.passes(method, job)
    if "data" in needed:
        needed["data"] = list(itertools.islice(needed["data"], MEASURED))
    return needed


def _batches(job: loop.Job) -> list[tuple[Tensor, Tensor]]:
    return [job.batches.get(0, index) for index in range(min(10, len(job.batches)))]


def _after_step(
    stage: Stage, bench: build.Bench, folder: RunFolder, ticket: Ticket, settled: Settled | None
) -> None:
    """Put the weights aside that a later stage rewinds to, and look at the ticket where an epoch ends."""
    job = bench.job
    if job.position.step + 1 in stage.keep:
        save_tree(folder.path / f"step-{job.position.step + 1}", _weights(bench, ticket))
    last_of_epoch = job.position.batch + job.settings.accumulate > len(job.batches)
    if settled is not None and last_of_epoch:
        job.stopped = settled.add(job.position.epoch, job.model)


def _weights(bench: build.Bench, ticket: Ticket) -> dict[str, Tensor]:
    dense = getattr(bench.sparsifier, "dense_state_dict", bench.job.model.state_dict)
    state = {plain(name): tensor for name, tensor in dense().items()}
    return {name: state[name].detach().clone() for name in ticket.weights}


def _costs(recipe: Recipe, ticket: Ticket, method: Any, stage: Stage, end: int) -> Budget:
    """Samples and FLOPs of the steps a stage has made, counted; a search trains all weights of its source."""
    entry = recipe.data.entry()
    total, per_step = steps_of(stage), recipe.data.batch_size * recipe.train.accumulate
    steps = range(stage.first, end)
    planned = (
        method if method is not None and stage.kind != "search" else Given(ticket.density, masks=ticket.masks)
    )
    plan = ss.plan(
        build.model_of(recipe),
        planned,
        source=MaskSource(ticket.masks if planned is method else ticket.sources),
        layers=list(ticket.masks),
        total_steps=total,
        example_input=build.example_of(entry, 1),
    )
    assert plan.flops is not None
    counts = [planned.target(step - 1, plan.num_weights, plan.num_start, total) for step in steps]
    dense = per_step * sum(count == plan.num_weights for count in counts)
    samples = per_step * len(steps)
    return Budget(dense, samples - dense, plan.flops.training * samples, plan.flops.dense_training * samples)


def _finish(folder: RunFolder, stages: Stages, done: Output) -> dict[str, Any]:
    """The one look at the test part, the compact file, and the figures."""
    last = stages.stages[-1].recipe
    assert last is not None
    bench = build.bench_of(last.model_copy(update={"method": None}))
    model = bench.job.model
    done.ticket.put(model)
    test = loop.evaluate(model, bench.dataset, bench.dataset.test, last.train.amp)
    held = None
    if len(bench.dataset.validation):
        held = loop.evaluate(model, bench.dataset, bench.dataset.validation, last.train.amp)["accuracy"]
    artifact.save(model, folder.net)
    result = {
        "test_accuracy": test["accuracy"],
        "test_loss": test["loss"],
        "validation_accuracy": held,
        "density": done.ticket.density,
        "live_weights": done.ticket.num_active,
        "net_bytes": folder.net.stat().st_size,
        "seed": stages.base.seed,
        "costs": done.costs.as_dict(),
        "stages": [str(Path("stages") / stages.output(stage).name) for stage in stages.stages],
        "environment": environment(),
    }
    if any(stage.kind == "search" for stage in stages.stages):
        left_out = classifier(model)
        kept = [mask for name, mask in done.ticket.masks.items() if name != left_out]
        live, weights = (sum(int(f(mask)) for mask in kept) for f in (torch.sum, torch.numel))
        result["density_without_classifier"] = live / weights if weights else result["density"]
    folder.write_result(result)
    return result


def num_done(stages: Stages) -> int:
    """Stages whose output is there."""
    return sum((stages.output(stage) / OUTPUT).exists() for stage in stages.stages)
