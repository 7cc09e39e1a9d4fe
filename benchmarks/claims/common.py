"""What claims share: data as tensors, one plain training loop, tables of paired differences.

A claim's script imports it by ``import common`` or ``from common import ...``.
"""

from __future__ import annotations

import functools
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import startsparse as ss
from startsparse.experiments import comparison, stats
from startsparse.training import data as data_sets
from startsparse.training import models, optim, seeds


@dataclass(frozen=True)
class Data:
    """Normalised float32 inputs (N, C, H, W) and int64 labels. Choices are made on the validation part."""

    name: str
    x_train: Tensor
    y_train: Tensor
    x_validation: Tensor
    y_validation: Tensor
    x_test: Tensor
    y_test: Tensor
    classes: int

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(C, H, W)."""
        return tuple(self.x_train.shape[1:])


@functools.lru_cache(maxsize=2)
def load(name: str, train: int | None = None, validation: int = 5000, seed: int = 0) -> Data:
    """A data set by name ("mnist", "fashion-mnist", "cifar10", "digits").

    Args:
        name: of the data set.
        train: training examples to use, drawn by ``seed``; None uses all that are left.
        validation: examples of the training part that are held out, by ``seed``.
        seed: of both draws. The same one for all runs compares them on the same examples.
    """
    dataset = data_sets.load(name, validation=validation, seed=seed)
    chosen = dataset.train
    if train is not None:
        if not 0 < train <= len(chosen):
            raise ValueError(f"train: {name} has {len(chosen)} training examples left, got {train}")
        generator = torch.Generator().manual_seed(seeds.derive(seed, "subset"))
        chosen = chosen.take(torch.randperm(len(chosen), generator=generator)[:train])
    parts = [
        tensor
        for split in (chosen, dataset.validation, dataset.test)
        for tensor in (dataset.normalise(split.inputs), split.labels)
    ]
    return Data(name, *parts, classes=dataset.classes)


def make_model(name: str, data: Data, seed: int, **options: Any) -> nn.Module:
    """A model of the training room, its initial weights a function of ``seed`` alone."""
    seeds.seed_all(seeds.derive(seed, "model"))
    return models.make(name, input_shape=data.input_shape, classes=data.classes, **options)


def train(
    model: nn.Module,
    data: Data,
    method: ss.methods.Method | None = None,
    source: ss.sources.Source | None = None,
    *,
    epochs: int | None = None,
    steps: int | None = None,
    batch: int = 128,
    optimizer: str = "sgd",
    lr: float = 0.1,
    options: Mapping[str, Any] | None = None,
    schedule: str = "cosine",
    warmup: float = 0.0,
    label_smoothing: float = 0.0,
    clip_norm: float | None = None,
    augment: str | None = None,
    layers: Any = None,
    execution: str = "masked",
    seed: int = 0,
    each_step: Callable[[int, nn.Module, Any], None] | None = None,
    finish: Callable[[nn.Module, Any], dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Train a model in place and return plain figures; the test part is looked at once, at the end.

    Args:
        model: with its initial weights.
        data: what ``load`` gives.
        method, source, layers, execution: as for ``ss.attach``; without a method the run is dense.
        epochs, steps: exactly one; an epoch leaves the last incomplete batch out.
        batch: examples a step.
        optimizer, lr, options: of ``torch.optim``, by lower-case name. For "sgd", ``options`` are momentum 0.9 and
            weight decay 5e-4 unless given.
        schedule, warmup: of the learning rate, by name ("cosine", "constant", ...).
        label_smoothing, clip_norm, augment: of a step; ``augment`` is "crop", "flip" or "crop-flip".
        seed: of the order of the examples and of what the method draws by torch's generators. The seed of masks is
            the method's own.
        each_step: called as (steps done, model, sparsifier) after every step.
        finish: called as (model, sparsifier) before the sparsifier lets go; its figures join the result.

    Returns:
        test_accuracy, validation_accuracy, train_loss (of the last hundred steps), steps, samples, density,
        live_weights, flops and dense_flops (of the sparse layers over the whole training, counted by ``ss.plan``,
        dense-gradient steps included), inference_flops (of one sample), train_seconds, and what ``finish`` gives.
    """
    if (epochs is None) == (steps is None):
        raise ValueError("give exactly one of epochs and steps")
    per_epoch = len(data.y_train) // batch
    total = steps if steps is not None else (epochs or 0) * per_epoch
    if options is None:
        options = {"momentum": 0.9, "weight_decay": 5e-4} if optimizer == "sgd" else {}
    costs = _costs(model, data, method, source, layers, total, batch)
    stepper = optim.make(optimizer, model.parameters(), lr=lr, **options)
    rate = optim.LearningRate(stepper, optim.schedule(schedule, warmup=warmup), total)
    loss_fn = functools.partial(F.cross_entropy, label_smoothing=label_smoothing)
    seeds.seed_all(seeds.derive(seed, "train"))
    sparse = None
    if method is not None:
        passes = _passes(method, data, batch, loss_fn, seed)
        if execution == "auto":
            passes["example_input"] = data.x_train[:batch]
        sparse = ss.attach(
            model,
            stepper,
            method,
            source=source,
            total_steps=total,
            layers=layers,
            execution=execution,
            **passes,
        )
    transform = None if augment is None else data_sets.AUGMENTS[augment]
    begin, losses, done = time.perf_counter(), [], 0
    model.train()
    while done < total:
        for inputs, labels in batches(data, batch, seed, done // per_epoch, transform):
            if done == total:
                break
            rate.set(done)
            stepper.zero_grad()
            loss = loss_fn(model(inputs), labels)
            loss.backward()
            if clip_norm is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
            stepper.step()
            done += 1
            losses.append(loss.detach())
            if each_step is not None:
                each_step(done, model, sparse)
    seconds = time.perf_counter() - begin
    result = {
        "test_accuracy": accuracy(model, data.x_test, data.y_test),
        "validation_accuracy": accuracy(model, data.x_validation, data.y_validation),
        "train_loss": torch.stack(losses[-100:]).mean().item(),
        "steps": done,
        "samples": done * batch,
        "density": 1.0 if sparse is None else sparse.density,
        "live_weights": live_weights(model, sparse),
        **costs,
        "train_seconds": round(seconds, 3),
    }
    if finish is not None:
        result |= finish(model, sparse)
    return result


def batches(
    data: Data, batch: int, seed: int, epoch: int, transform: Callable[..., Tensor] | None = None
) -> Iterable[tuple[Tensor, Tensor]]:
    """The batches of an epoch, in an order that is a function of (seed, epoch)."""
    generator = torch.Generator().manual_seed(seeds.derive(seed, "order", epoch))
    order = torch.randperm(len(data.y_train), generator=generator)
    for chosen in order[: len(order) // batch * batch].split(batch):
        inputs = data.x_train[chosen]
        yield (inputs if transform is None else transform(inputs, generator)), data.y_train[chosen]


@torch.no_grad()
def accuracy(model: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    """Share of right answers, in evaluation mode; the mode before is put back."""
    was_training = model.training
    model.eval()
    right = sum(
        int((model(x).argmax(1) == y).sum())
        for x, y in zip(inputs.split(1000), labels.split(1000), strict=True)
    )
    model.train(was_training)
    return right / len(labels) if len(labels) else float("nan")


def live_weights(model: nn.Module, sparse: Any) -> int:
    """Live weights of the sparse layers; of a dense net all weights but vectors."""
    if sparse is None:
        return sum(p.numel() for p in model.parameters() if p.dim() > 1)
    return sum(int(mask.sum()) for mask in sparse.masks.values())


def _costs(
    model: nn.Module, data: Data, method: Any, source: Any, layers: Any, total: int, batch: int
) -> dict[str, float]:
    with warnings.catch_warnings(action="ignore"):  # attach gives the same ones again
        plan = ss.plan(
            model,
            ss.Static(density=1.0) if method is None else method,
            source=source,
            layers=layers,
            total_steps=total,
            example_input=data.x_train[:batch],
        )
    counted, samples = plan.flops, total * batch
    assert counted is not None
    return {
        "flops": counted.training * samples,
        "dense_flops": counted.dense_training * samples,
        "inference_flops": counted.inference,
    }


class _Again:
    """The batches of the first epoch, as often as somebody goes through them."""

    def __init__(self, data: Data, batch: int, seed: int):
        self._arguments = (data, batch, seed, 0)

    def __iter__(self):
        return iter(batches(*self._arguments))


def _passes(method: Any, data: Data, batch: int, loss_fn: Any, seed: int) -> dict[str, Any]:
    """What a method declares to need for passes of its own."""
    offered = {"data": _Again(data, batch, seed), "loss_fn": loss_fn, "example_input": data.x_train[:1]}
    return {name: value for name, value in offered.items() if name in getattr(method, "needs", ())}


def values(
    records: list[dict[str, Any]], by: str | Sequence[str], metric: str
) -> dict[str, dict[int, float]]:
    """Label -> seed -> figure, of the records' results (or "seconds"); the label is the value of ``by``.

    Args:
        records: as a judge is given them; filter them first where more than ``by`` and the seed differs.
        by: the parameter, or several.
        metric: a key of the results.

    Raises:
        ValueError: two records have the same label and seed.
    """
    found: dict[str, dict[int, float]] = {}
    for record in records:
        params = record["params"]
        label = " ".join(str(params[key]) for key in ([by] if isinstance(by, str) else by))
        group = found.setdefault(label, {})
        if params["seed"] in group:
            raise ValueError(
                f"two records of {label!r} with seed {params['seed']}: filter them, or add to by="
            )
        group[params["seed"]] = record["result"][metric]
    return found


def paired_table(
    records: list[dict[str, Any]],
    by: str | Sequence[str],
    metric: str,
    baseline: str,
    confidence: float = 0.95,
) -> str:
    """A Markdown table: each group's mean and its paired difference to the baseline, with interval and verdict."""
    rows = comparison.compare(values(records, by, metric), baseline, confidence)
    unit = comparison.Unit(metric)
    return comparison.markdown(comparison.headings(unit, rows), [comparison.cells(row, unit) for row in rows])


def difference(
    records: list[dict[str, Any]],
    by: str | Sequence[str],
    metric: str,
    label: str,
    baseline: str,
    confidence: float = 0.95,
) -> stats.Difference:
    """One group minus another, paired by seed: ``.mean``, ``.low``, ``.high``, ``.judge()``."""
    chosen = {name: group for name, group in values(records, by, metric).items() if name in (label, baseline)}
    (row,) = [row for row in comparison.compare(chosen, baseline, confidence) if row.label == label]
    assert row.difference is not None
    return row.difference


def at_least(found: stats.Difference, bar: float) -> str:
    """PASS if the whole interval lies at or above ``bar``, FAIL if it lies below, else CANNOT TELL."""
    if found.seeds < stats.FEWEST:
        return "CANNOT TELL"
    return "PASS" if found.low >= bar else "FAIL" if found.high < bar else "CANNOT TELL"


def within(found: stats.Difference, margin: float) -> str:
    """PASS if the whole interval lies inside +-``margin``, FAIL if it lies outside, else CANNOT TELL.

    With an interval of 90 % this is the equivalence test of two one-sided tests at 5 %.
    """
    if found.seeds < stats.FEWEST:
        return "CANNOT TELL"
    if -margin <= found.low and found.high <= margin:
        return "PASS"
    return "FAIL" if found.low > margin or found.high < -margin else "CANNOT TELL"


@functools.lru_cache(maxsize=1)
def digits(seed: int) -> Data:
    """scikit-learn's digits, 1,257 to train and 540 to test, split anew by each seed; nothing is held out."""
    whole = data_sets.load("digits", validation=0)
    inputs = torch.cat([whole.train.inputs, whole.test.inputs])
    labels = torch.cat([whole.train.labels, whole.test.labels])
    generator = torch.Generator().manual_seed(seeds.derive(seed, "digits"))
    order = torch.randperm(len(labels), generator=generator)
    x, y = whole.normalise(inputs)[order], labels[order]
    return Data("digits", x[540:], y[540:], x[:0], y[:0], x[:540], y[:540], classes=10)


def one_by_one(records: list[dict[str, Any]], key: str = "case") -> list[dict[str, Any]]:
    """Records whose results hold several cases, name -> figures, as one record a case, its name among the params."""
    return [
        {"params": record["params"] | {key: name}, "result": figures}
        for record in records
        for name, figures in record["result"].items()
    ]


def reaches(found: stats.Difference, bar: float) -> str:
    """PASS if the mean reaches ``bar`` and the interval leaves zero out, FAIL if the interval lies below ``bar``."""
    if found.seeds < stats.FEWEST:
        return "CANNOT TELL"
    if found.mean >= bar and found.low > 0:
        return "PASS"
    return "FAIL" if found.high < bar else "CANNOT TELL"


def points(found: stats.Difference) -> str:
    """A difference of accuracies in words: percentage points, interval, seeds."""
    return (
        f"{100 * found.mean:+.2f} pp ({100 * found.confidence:g} % interval {100 * found.low:+.2f} to "
        f"{100 * found.high:+.2f}, {found.seeds} seeds)"
    )
