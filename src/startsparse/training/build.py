"""From a recipe to the objects it describes. No method is known here by name: it says itself what it needs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

import startsparse as ss
from startsparse.execution.fused import LANES
from startsparse.execution.fusing import Fusion
from startsparse.training import data, loop, models, optim, seeds
from startsparse.training.recipe import Recipe


@dataclass
class Bench:
    """A run, ready to start.

    Attributes:
        recipe: what it was built from.
        dataset: on the device.
        job: model, optimizer, schedule, batches.
        sparsifier: what keeps the model sparse; None for a dense run.
        num_parameters: of the model as it was made, zeros included.
        fusion: what ``ss.fuse`` made of sparse layers of a model that is not of this library; None for all else.
    """

    recipe: Recipe
    dataset: data.Dataset
    job: loop.Job
    sparsifier: Any
    num_parameters: int
    fusion: Fusion | None = None


def device_of(recipe: Recipe) -> torch.device:
    """The device a recipe means; ``auto`` is CUDA where there is one.

    Raises:
        ValueError: it is not there.
    """
    wanted = recipe.train.device
    device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"train.device: {wanted} was asked for, but there is no CUDA device; use auto or cpu"
        )
    return device


def model_of(recipe: Recipe) -> nn.Module:
    """The model with its initial weights, which depend on the recipe's seed alone."""
    seeds.seed_all(seeds.derive(recipe.seed, "model"))
    return models.make(**recipe.resolved()["model"])


def optimizer_of(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer over all parameters of a model."""
    options = recipe.resolved()["optimizer"]
    return optim.make(options.pop("name"), model.parameters(), **options)


def method_of(recipe: Recipe) -> tuple[Any, Any]:
    """(method, source), or (None, None) for a dense run; no source means everywhere.

    Raises:
        ValueError: the method is not one that trains a net once; says how a recipe has it.
    """
    resolved = recipe.resolved()
    if resolved["method"] is None:
        return None, None
    method, source = ss.methods.make(**resolved["method"]), resolved["source"]
    if method.kind != "attach":
        what = (
            "searches a mask over frozen weights" if method.kind == "search" else "trains a net several times"
        )
        first = "{stage: train}, " if method.kind == "search" else ""
        raise ValueError(
            f"method: {method.name} {what}, which is a stage of a recipe: instead of method: write "
            f"stages: [{first}{{stage: {method.kind}, method: {{name: {method.name}, ...}}}}]"
        )
    return method, None if source is None else ss.sources.make(**source)


def total_steps(recipe: Recipe, examples: int) -> int:
    """Optimizer steps of a run over ``examples`` training examples."""
    if recipe.train.steps is not None:
        return recipe.train.steps
    batches = examples // min(recipe.data.batch_size, examples)
    return (recipe.train.epochs or 0) * (batches // recipe.train.accumulate)


def plan_of(recipe: Recipe) -> Any:
    """What the method will make of the model; printable, with ``as_dict()`` and ``warnings``. No data are needed.

    One example is enough to count with. Under ``execution: auto`` a recipe's layers are not timed but go by their density,
    so that the recipe alone decides about its bits.

    Raises:
        ValueError: the recipe has no method, or asks for what its layers cannot hold.
    """
    method, source = method_of(recipe)
    if method is None:
        raise ValueError("method: a dense run has nothing to plan")
    entry, chosen = recipe.data.entry(), recipe.data
    model = model_of(recipe)
    batch = min(chosen.batch_size, entry.examples)
    given: dict[str, Any] = {"source": source, "layers": recipe.layers, "power": recipe.power}
    given["optimizer"] = optimizer_of(recipe, model)
    given["total_steps"] = total_steps(
        recipe, entry.examples - data.num_held_out(entry.examples, chosen.validation)
    )
    execution, example = recipe.train.execution, example_of(entry, 1)
    by_density = execution == "auto"
    plan = ss.plan(
        model, method, execution="masked" if by_density else execution, example_input=example, **given
    )
    if by_density:
        ruled = ss.plan(model, method, execution="auto", **given)
        rows = [
            replace(r, inference_flops=p.inference_flops)
            for r, p in zip(ruled.layers, plan.layers, strict=True)
        ]
        plan = replace(ruled, layers=rows, flops=plan.flops, warnings=plan.warnings)
    return replace(plan, flops=None if plan.flops is None else replace(plan.flops, batch=batch))


def example_of(entry: data.Entry, batch: int) -> Tensor:
    """A batch of zeros of a data set's shape: images and rows are numbers, characters integers."""
    return torch.zeros(batch, *entry.shape, dtype=torch.int64 if entry.is_text else torch.float32)


def dataset_of(recipe: Recipe) -> data.Dataset:
    """The data set, its validation part held out by the recipe's seed."""
    chosen = recipe.data
    return data.load(chosen.name, chosen.root, chosen.validation, recipe.seed, options=chosen.options)


def bench_of(recipe: Recipe) -> Bench:
    """Everything, on its device, at step 0.

    Raises:
        ValueError: something the recipe alone could not tell, such as a density its layers cannot reach.
    """
    device = device_of(recipe)
    dataset = dataset_of(recipe).to(device)
    augment = None if recipe.data.augment is None else data.AUGMENTS[recipe.data.augment]
    batches = data.Batches(dataset.train, recipe.data.batch_size, recipe.seed, augment)
    model = model_of(recipe).to(device)
    optimizer = optimizer_of(recipe, model)
    train = recipe.train
    settings = loop.Settings(
        total_steps(recipe, len(dataset.train)),
        train.accumulate,
        train.label_smoothing,
        train.clip_norm,
        train.amp,
    )
    named = recipe.resolved()["schedule"]
    rate = optim.LearningRate(optimizer, optim.schedule(**named), settings.total_steps)
    job = loop.Job(model, optimizer, rate, dataset, batches, settings)
    seeds.seed_all(seeds.derive(recipe.seed, "train"))
    count = sum(parameter.numel() for parameter in model.parameters())
    sparsifier = _attach(recipe, job)
    return Bench(recipe, dataset, job, sparsifier, count, fuse(job, sparsifier))


def _attach(recipe: Recipe, job: loop.Job) -> Any:
    method, source = method_of(recipe)
    if method is None:
        return None
    sparsifier = ss.attach(
        job.model,
        job.optimizer,
        method,
        source=source,
        total_steps=job.settings.total_steps,
        layers=recipe.layers,
        execution=recipe.train.execution,
        power=recipe.power,
        **passes(method, job),
    )
    job.probes = sparsifier.probes
    return sparsifier


def fuse(job: loop.Job, sparsifier: Any) -> Fusion | None:
    """Let sparse layers of a model that is not of this library run together where tracing finds that they can.

    Our own models do so unasked, and under autocast none does.
    """
    choices = getattr(sparsifier, "execution", {}).values()
    ours = all(type(m).__module__.startswith(("startsparse.", "torch.")) for m in job.model.modules())
    if ours or job.settings.amp != "none" or all(choice.execution != "sparse" for choice in choices):
        return None
    return ss.fuse(job.model, next(iter(FirstBatches(job)))[0][:LANES])


def passes(method: Any, job: loop.Job) -> dict[str, Any]:
    """What a method declares to need for passes of its own: ``data``, ``loss_fn``, ``example_input``."""
    smoothing = job.settings.label_smoothing

    def loss_fn(outputs: Tensor, labels: Tensor) -> Tensor:
        return loop.loss_of(outputs, labels, smoothing)

    offered = {"data": FirstBatches(job), "loss_fn": loss_fn, "example_input": None}
    needs = getattr(method, "needs", ())
    if "example_input" in needs:
        offered["example_input"] = next(iter(FirstBatches(job)))[0][:1]
    return {name: value for name, value in offered.items() if name in needs}


class FirstBatches:
    """The batches of the first epoch, as the model takes them; may be gone through more than once."""

    def __init__(self, job: loop.Job):
        self._job = job

    def __len__(self) -> int:
        return len(self._job.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for index in range(len(self)):
            inputs, labels = self._job.batches.get(0, index)
            yield self._job.data.normalise(inputs), labels
