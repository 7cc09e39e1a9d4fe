"""Batches as a pure function of (seed, epoch, index): any position can be taken up again without replaying."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from startsparse.training.data.splits import Split
from startsparse.training.seeds import derive

Augment = Callable[[Tensor, torch.Generator], Tensor]


def random_crop(inputs: Tensor, generator: torch.Generator, padding: int = 4) -> Tensor:
    """Shift each image by up to ``padding`` pixels, zeros moving in; all images at once, on their device."""
    count, _, height, width = inputs.shape
    device = inputs.device
    shift = torch.randint(2 * padding + 1, (2, count, 1), generator=generator, device=device)
    rows = (shift[0] + torch.arange(height, device=device))[:, :, None]  # (N, H, 1)
    columns = (shift[1] + torch.arange(width, device=device))[:, None, :]  # (N, 1, W)
    padded = F.pad(inputs, (padding,) * 4).permute(0, 2, 3, 1)
    return padded[torch.arange(count, device=device)[:, None, None], rows, columns].permute(0, 3, 1, 2)


def random_flip(inputs: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each image left to right with probability one half."""
    flip = torch.rand(len(inputs), 1, 1, 1, generator=generator, device=inputs.device) < 0.5
    return torch.where(flip, inputs.flip(-1), inputs)


def crop_flip(inputs: Tensor, generator: torch.Generator) -> Tensor:
    """The usual augmentation of CIFAR: a random crop after padding by 4, and a random mirror."""
    return random_flip(random_crop(inputs, generator), generator)


AUGMENTS: dict[str, Augment] = {"crop": random_crop, "flip": random_flip, "crop-flip": crop_flip}


class Batches:
    """The batches of one split, permuted anew each epoch; the last incomplete one is left out.

    Args:
        split: where examples come from; batches live on its device.
        size: examples per batch, at most the whole split.
        seed: of the order and of the augmentation (each has a stream of its own).
        augment: what is done to the bytes of a training batch.

    Example:
        >>> split = Split(torch.zeros(10, 1, 8, 8, dtype=torch.uint8), torch.arange(10))
        >>> batches = Batches(split, 4, seed=0)
        >>> len(batches)
        2
        >>> again = Batches(split, 4, seed=0)
        >>> bool((batches.get(3, 1)[1] == again.get(3, 1)[1]).all())
        True
    """

    def __init__(self, split: Split, size: int, seed: int, augment: Augment | None = None):
        if not len(split):
            raise ValueError("the split is empty: there is nothing to make batches of")
        self.split, self.size, self.seed, self.augment = split, min(size, len(split)), seed, augment
        self._generator = torch.Generator(device=split.inputs.device)
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.long)

    def __len__(self) -> int:
        return len(self.split) // self.size

    def get(self, epoch: int, index: int) -> tuple[Tensor, Tensor]:
        """Batch ``index`` of ``epoch``: uint8 inputs (augmented) and labels."""
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(derive(self.seed, "order", epoch))
            self._order = torch.randperm(len(self.split), generator=generator).to(self.split.labels.device)
            self._epoch = epoch
        chosen = self._order[index * self.size : (index + 1) * self.size]
        inputs, labels = self.split.inputs[chosen], self.split.labels[chosen]
        if self.augment is not None:
            self._generator.manual_seed(derive(self.seed, "augment", epoch, index))
            inputs = self.augment(inputs, self._generator)
        return inputs, labels


def in_order(split: Split, size: int = 1000) -> Iterator[tuple[Tensor, Tensor]]:
    """Every example once, as it lies: for evaluation."""
    for start in range(0, len(split), size):
        yield split.inputs[start : start + size], split.labels[start : start + size]
