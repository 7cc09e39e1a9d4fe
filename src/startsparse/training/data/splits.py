"""What a data set is once it is read: bytes on a device, split in three."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from startsparse.training.seeds import derive


@dataclass(frozen=True)
class Split:
    """Images and labels of one part: ``inputs`` uint8 (N, C, H, W), ``labels`` int64 (N,)."""

    inputs: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Tensor) -> Split:
        """The examples at ``index``, in that order."""
        return Split(self.inputs[index], self.labels[index])

    def to(self, device: torch.device | str) -> Split:
        """The same split on ``device``."""
        return Split(self.inputs.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Dataset:
    """A data set held in memory: decoded once, uint8, normalised where it is used.

    Attributes:
        name: what ``load`` calls it.
        train: what the net learns from.
        validation: held out of the training part by seed; all choices are made on it. May be empty.
        test: touched once, for the final figure.
        mean: per channel, of value / 255.
        std: per channel, of value / 255.
        classes: number of classes.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: int

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(C, H, W) of one image."""
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
        """uint8 (N, C, H, W) -> float32 of mean 0 and variance 1 per channel over the training part."""
        scale = torch.tensor(self.std, device=inputs.device).mul_(255).reciprocal_().view(1, -1, 1, 1)
        shift = torch.tensor(self.mean, device=inputs.device).mul_(-255).view(1, -1, 1, 1)
        return inputs.float().add_(shift).mul_(scale)


def hold_out(train: Split, validation: float, seed: int) -> tuple[Split, Split]:
    """Split a training part in (train, validation), by a permutation that depends on the seed alone.

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
    total = len(train)
    count = num_held_out(total, validation)
    generator = torch.Generator().manual_seed(derive(seed, "validation"))
    order = torch.randperm(total, generator=generator)
    return train.take(order[count:].sort().values), train.take(order[:count].sort().values)


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
