"""The training loop: short, and without a word about sparsity. A sparsifier hooks itself into the optimizer."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from startsparse.training.data import Batches, Dataset, Split, in_order
from startsparse.training.metrics import Running
from startsparse.training.optim import LearningRate

_AT_ONCE = {False: 2**24, True: 2**16}  # values of images, characters of text
AMP = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Diverged(ArithmeticError):
    """The loss is no longer a number."""


@dataclass(frozen=True)
class Settings:
    """How a step is made.

    Args:
        total_steps: optimizer steps of the run.
        accumulate: batches per optimizer step; their mean gradient is taken.
        label_smoothing: share of the target spread over all classes, in [0, 1).
        clip_norm: largest norm of the gradient; None leaves it.
        amp: ``"none"``, ``"bf16"`` or ``"fp16"`` (with a gradient scaler).
    """

    total_steps: int
    accumulate: int = 1
    label_smoothing: float = 0.0
    clip_norm: float | None = None
    amp: str = "none"


@dataclass
class Position:
    """Where a run stands: optimizer steps done, and the next batch to take."""

    step: int = 0
    epoch: int = 0
    batch: int = 0


@dataclass
class Job:
    """Everything a step touches. ``data`` says how bytes become inputs; ``stopped`` ends a run before its time.

    ``distill`` makes of (loss, outputs, inputs) the loss to go back from, if there is more to it than the labels;
    ``probes`` counts the batches that are passed through the model before a step and not learnt from.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    rate: LearningRate
    data: Dataset
    batches: Batches
    settings: Settings
    position: Position = field(default_factory=Position)
    stopped: bool = False
    distill: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
    probes: Callable[[], Iterable[int]] = tuple

    def __post_init__(self):
        per_step = self.settings.accumulate
        if len(self.batches) < per_step:
            raise ValueError(f"an epoch of {len(self.batches)} batches holds no step of {per_step}")
        self.device = self.batches.split.labels.device
        self.running = Running(self.device)
        scale = self.settings.amp == "fp16"
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=scale)

    @property
    def done(self) -> bool:
        """Whether the run has had all its steps, or was stopped."""
        return self.stopped or self.position.step >= self.settings.total_steps

    def state_dict(self) -> dict[str, Any]:
        """All of it, as nested plain data and tensors."""
        return {
            "model": dict(self.model.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "rate": self.rate.state_dict(),
            "scaler": self.scaler.state_dict(),
            "running": self.running.state_dict(),
            "position": vars(self.position).copy(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self.rate.load_state_dict(state["rate"])
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])
        self.running.load_state_dict(state["running"])
        self.position = Position(**state["position"])


def steps_per_epoch(batches: Batches, accumulate: int = 1) -> int:
    """Optimizer steps that one pass over the training split makes."""
    return len(batches) // accumulate


def steps(job: Job) -> Iterator[bool]:
    """Train until the job is done; yields after every optimizer step, True where an epoch ended.

    A step that the gradient scaler skips uses up data, but is no step. The caller may stop, save, evaluate or log
    between any two steps.
    """
    job.model.train()
    epoch = job.position.epoch
    while not job.done:
        if _attempt(job):
            yield job.position.epoch > epoch
            epoch = job.position.epoch


def _attempt(job: Job) -> bool:
    """One optimizer step, unless the gradient scaler skips it."""
    position = job.position
    job.rate.set(position.step)
    job.optimizer.zero_grad()
    for index in job.probes():  # the batches that come after those of this step
        ahead = (position.batch + job.settings.accumulate + index) % len(job.batches)
        _backward(job, *job.batches.get(position.epoch, ahead), probe=True)
    for _ in range(job.settings.accumulate):
        _backward(job, *job.batches.get(position.epoch, position.batch))
        position.batch += 1
    stepped = _update(job)
    if position.batch + job.settings.accumulate > len(job.batches):
        position.epoch, position.batch = position.epoch + 1, 0
    position.step += stepped
    return stepped


def _backward(job: Job, inputs: Tensor, labels: Tensor, probe: bool = False) -> None:
    with autocast(job.device, job.settings.amp):
        inputs = job.data.normalise(inputs)
        outputs = job.model(inputs)
        loss = loss_of(outputs, labels, job.settings.label_smoothing)
        whole = loss if job.distill is None else job.distill(loss, outputs, inputs)
    job.scaler.scale(whole / (1 if probe else job.settings.accumulate)).backward()
    if not probe:
        job.running.add(loss, outputs, labels)


def loss_of(outputs: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy in nats, of classes (N, C) or of each next token (N, T, C).

    Example:
        >>> even = torch.zeros(2, 3, 4)
        >>> round(loss_of(even, torch.zeros(2, 3, dtype=torch.long)).item(), 4)  # log 4
        1.3863
    """
    return F.cross_entropy(outputs.flatten(0, -2), labels.flatten(), label_smoothing=label_smoothing)


def _update(job: Job) -> bool:
    if job.settings.clip_norm is not None:
        job.scaler.unscale_(job.optimizer)
        nn.utils.clip_grad_norm_(job.model.parameters(), job.settings.clip_norm)
    if not job.scaler.is_enabled():
        job.optimizer.step()
        return True
    scale = job.scaler.get_scale()
    job.scaler.step(job.optimizer)
    job.scaler.update()
    return job.scaler.get_scale() >= scale  # a smaller scale says that the step was skipped


def autocast(device: torch.device, amp: str) -> contextlib.AbstractContextManager[Any]:
    """The mixed-precision context of one forward pass."""
    dtype = AMP[amp]
    return contextlib.nullcontext() if dtype is None else torch.autocast(device.type, dtype)


@torch.no_grad()
def evaluate(
    model: nn.Module, data: Dataset, split: Split, amp: str = "none", batch: int = 1000
) -> dict[str, float]:
    """Mean loss (nats) and accuracy over a split, in evaluation mode; the mode before is put back.

    At most ``batch`` examples at once, fewer where they are large images or long texts.
    """
    batch = max(1, min(batch, _AT_ONCE[split.labels.dim() > 1] // math.prod(split.inputs.shape[1:])))
    was_training = model.training
    model.eval()
    running = Running(split.labels.device)
    for inputs, labels in in_order(split, batch):
        with autocast(inputs.device, amp):
            outputs = model(data.normalise(inputs))
        running.add(loss_of(outputs.float(), labels), outputs, labels)
    model.train(was_training)
    return running.take()


def check_finite(row: dict[str, float], step: int) -> None:
    """Refuse to go on once the loss is not a number.

    Raises:
        Diverged: with the step and what usually helps.
    """
    if not torch.isfinite(torch.tensor(row["loss"])):
        raise Diverged(
            f"the training loss is {row['loss']} at step {step}: a smaller optimizer.lr, a warm-up "
            f"(schedule.warmup) or train.clip_norm usually helps"
        )
