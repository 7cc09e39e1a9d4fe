"""What a data set is once it is read: examples on a device, split in three."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from startsparse.training.seeds import derive


@dataclass(frozen=True)
class Split:
    """Examples of one part.

    Attributes:
        inputs: images uint8 (N, C, H, W) (or files that are decoded when they are looked at), features of a table
            float32 (N, F), or characters int64 (N, context).
        labels: int64 (N,), or for text the characters that follow (N, context).
    """

    inputs: Any
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Tensor) -> Split:
        """The examples at ``index``, in that order."""
        return Split(self.inputs[index], self.labels[index])

    def to(self, device: torch.device | str) -> Split:
        """The same split on ``device``."""
        return Split(self.inputs.to(device), self.labels.to(device))

    def hold_out(self, count: int, seed: int) -> tuple[Split, Split]:
        """(the rest, ``count`` examples), by a permutation that depends on the seed alone."""
        generator = torch.Generator().manual_seed(derive(seed, "validation"))
        order = torch.randperm(len(self), generator=generator)
        return self.take(order[count:].sort().values), self.take(order[:count].sort().values)

    def of_epoch(self, draw: int) -> Split:
        """The examples of one epoch of training; ``draw`` is a random number of that epoch."""
        return self


@dataclass(frozen=True)
class Dataset:
    """A data set, normalised where it is used.

    Attributes:
        name: what ``load`` calls it.
        train: what the net learns from.
        validation: held out of the training part; all choices are made on it. May be empty.
        test: touched once, for the final figure.
        mean: per channel or feature, of value / scale; empty for text, which is not normalised.
        std: per channel or feature, of value / scale.
        classes: number of classes, or of distinct characters.
        scale: 255 for images, 1 for tables.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: int
    scale: float = 255

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(C, H, W) of one image, (F,) of a row, or (context,) of text."""
        return tuple(self.train.inputs.shape[1:])

    def to(self, device: torch.device | str) -> Dataset:
        """The same data set on ``device``."""
        return replace(
            self,
            train=self.train.to(device),
            validation=self.validation.to(device),
            test=self.test.to(device),
        )

    def normalise(self, inputs: Tensor) -> Tensor:
        """What the model takes: float32 of mean 0 and variance 1 per channel over the training part, or characters."""
        if not self.mean:
            return inputs
        shape = (1, -1, *(1 for _ in inputs.shape[2:]))
        scale = torch.tensor(self.std, device=inputs.device).mul_(self.scale).reciprocal_().view(shape)
        shift = torch.tensor(self.mean, device=inputs.device).mul_(-self.scale).view(shape)
        return inputs.float().add(shift).mul_(scale)


def hold_out(train: Split, validation: float, seed: int) -> tuple[Split, Split]:
    """Split a training part in (train, validation): by seed, or text by position.

    Args:
        train: the whole training part.
        validation: a share in [0, 1), or a number of examples.
        seed: another seed, another validation split.

    Example:
        >>> whole = Split(torch.zeros(10, 1, 1, 1, dtype=torch.uint8), torch.arange(10))
        >>> rest, held = hold_out(whole, 0.2, seed=0)
        >>> len(rest), len(held), sorted(rest.labels.tolist() + held.labels.tolist()) == list(range(10))
        (8, 2, True)
    """
    return train.hold_out(num_held_out(len(train), validation), seed)


def num_held_out(total: int, validation: float) -> int:
    """How many of ``total`` examples a share or a number means.

    Example:
        >>> num_held_out(1437, 0.1), num_held_out(1437, 100)
        (144, 100)
    """
    if isinstance(validation, bool) or not 0 <= validation < (1 if isinstance(validation, float) else total):
        raise ValueError(
            f"validation is a share in [0, 1) or a number of examples below {total}, got {validation!r}"
        )
    return round(validation * total) if isinstance(validation, float) else validation
