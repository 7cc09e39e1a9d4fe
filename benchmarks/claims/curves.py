"""A task in the manner of MNIST-1D: ten curves of twelve points, stretched, moved, tilted and in noise, seen at forty.

Generated, so that there are enough test examples to tell half a point, and a net trains to its end in seconds. Ours:
the curves are random, drawn once; the noises and moves are those that Greydanus and Kobak name, *Scaling down deep
learning with MNIST-1D*, ICML 2024.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CLASSES, POINTS, LENGTH, SEEN = 10, 12, 60, 40


def curves(examples: int, seed: int) -> tuple[Tensor, Tensor]:
    """Inputs (examples, 40) of mean 0 and variance 1, and labels; the curves themselves do not depend on the seed."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(examples, 1, generator=generator)

    labels = torch.randint(CLASSES, (examples,), generator=generator)
    shapes = _shapes()[labels] * uniform(0.6, 1.4)
    stretch = uniform(1.0, 1.6)
    begin = uniform(0.35, 0.65) * (
        LENGTH - POINTS * stretch
    )  # not anywhere: this net has no notion of moving
    at = (torch.arange(LENGTH) - begin) / stretch  # where on its curve each point lies
    inside = (at >= 0) & (at <= POINTS - 1)
    low = at.clamp(0, POINTS - 1.001).floor()
    share = at.clamp(0, POINTS - 1.001) - low
    index = low.long()
    line = torch.gather(shapes, 1, index) * (1 - share) + torch.gather(shapes, 1, index + 1) * share
    smooth = _smooth(torch.randn(examples, LENGTH, generator=generator))
    tilt = uniform(-0.75, 0.75) * torch.linspace(-1, 1, LENGTH)
    noise = 0.25 * smooth + 0.02 * torch.randn(examples, LENGTH, generator=generator)
    raw = line * inside + tilt + noise
    seen = F.interpolate(raw[:, None], SEEN, mode="linear", align_corners=True)[:, 0]
    return seen / 0.54, labels


def _shapes() -> Tensor:
    generator = torch.Generator().manual_seed(40)
    raw = torch.randn(CLASSES, POINTS, generator=generator).cumsum(1)
    raw = raw - raw.mean(1, keepdim=True)
    return raw / raw.std(1, keepdim=True)


def _smooth(noise: Tensor) -> Tensor:
    """Correlated over some points, variance 1."""
    kernel = torch.exp(-torch.arange(-6, 7).square() / 8.0)
    kernel /= kernel.square().sum().sqrt()
    return F.conv1d(F.pad(noise[:, None], (6, 6), mode="circular"), kernel[None, None])[:, 0]
