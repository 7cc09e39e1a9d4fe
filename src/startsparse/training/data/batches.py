"""Batches as a pure function of (seed, epoch, index): any position can be taken up again without replaying."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from startsparse.training.data.images import ImageFiles, as_tensor
from startsparse.training.data.pictures import random_part
from startsparse.training.data.splits import Split
from startsparse.training.seeds import derive

Augment = Callable[[Any, torch.Generator], Tensor]


def random_crop(inputs: Tensor | ImageFiles, generator: torch.Generator, padding: int = 4) -> Tensor:
    """Shift each image by up to ``padding`` pixels, zeros moving in; all images at once, on their device."""
    inputs = as_tensor(inputs)
    count, _, height, width = inputs.shape
    device = inputs.device
    shift = torch.randint(2 * padding + 1, (2, count, 1), generator=generator, device=device)
    rows = (shift[0] + torch.arange(height, device=device))[:, :, None]  # (N, H, 1)
    columns = (shift[1] + torch.arange(width, device=device))[:, None, :]  # (N, 1, W)
    padded = F.pad(inputs, (padding,) * 4).permute(0, 2, 3, 1)
    return padded[torch.arange(count, device=device)[:, None, None], rows, columns].permute(0, 3, 1, 2)


def random_flip(inputs: Tensor | ImageFiles, generator: torch.Generator) -> Tensor:
    """Mirror each image left to right with probability one half."""
    inputs = as_tensor(inputs)
    flip = torch.rand(len(inputs), 1, 1, 1, generator=generator, device=inputs.device) < 0.5
    return torch.where(flip, inputs.flip(-1), inputs)


def crop_flip(inputs: Tensor | ImageFiles, generator: torch.Generator) -> Tensor:
    """The usual augmentation of CIFAR: a random crop after padding by 4, and a random mirror."""
    return random_flip(random_crop(inputs, generator), generator)


def resized_crop_flip(inputs: Tensor | ImageFiles, generator: torch.Generator) -> Tensor:
    """The usual augmentation of ImageNet: a random part of 8 % to all of each image, resized, and a random mirror.

    Files are cut before they are resized; images that are in memory already are cut as they are.
    """
    draws = torch.rand(len(inputs), 10, 4, generator=generator, device=inputs.device)
    if isinstance(inputs, ImageFiles):
        return random_flip(inputs.decode(draws), generator)
    _, _, height, width = inputs.shape
    parts = [random_part(width, height, numbers) for numbers in draws.cpu().numpy()]
    affine = torch.tensor(
        [
            [[w / width, 0, (2 * x + w) / width - 1], [0, h / height, (2 * y + h) / height - 1]]
            for x, y, w, h in parts
        ],
        device=inputs.device,
    )
    grid = F.affine_grid(affine, list(inputs.shape), align_corners=False)
    cut = F.grid_sample(inputs.float(), grid, padding_mode="border", align_corners=False)
    return random_flip(cut.round().to(inputs.dtype), generator)


AUGMENTS: dict[str, Augment] = {
    "crop": random_crop,
    "flip": random_flip,
    "crop-flip": crop_flip,
    "resized-crop-flip": resized_crop_flip,
}


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
        self._epoch, self._order, self._of_epoch = -1, torch.empty(0, dtype=torch.long), split

    def __len__(self) -> int:
        return len(self.split) // self.size

    def get(self, epoch: int, index: int) -> tuple[Tensor, Tensor]:
        """Batch ``index`` of ``epoch``: inputs (augmented), not normalised yet, and labels."""
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(derive(self.seed, "order", epoch))
            self._order = torch.randperm(len(self.split), generator=generator).to(self.split.labels.device)
            self._of_epoch = self.split.of_epoch(derive(self.seed, "text", epoch))
            self._epoch = epoch
        chosen = self._order[index * self.size : (index + 1) * self.size]
        inputs, labels = self._of_epoch.inputs[chosen], self._of_epoch.labels[chosen]
        if self.augment is not None:
            self._generator.manual_seed(derive(self.seed, "augment", epoch, index))
            inputs = self.augment(inputs, self._generator)
        return as_tensor(inputs), labels


def in_order(split: Split, size: int = 1000) -> Iterator[tuple[Tensor, Tensor]]:
    """Every example once, as it lies: for evaluation."""
    for start in range(0, len(split), size):
        yield as_tensor(split.inputs[start : start + size]), split.labels[start : start + size]
