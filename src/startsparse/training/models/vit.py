"""A small vision transformer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from startsparse.training.models.attention import Block, check, initialise
from startsparse.training.models.shapes import image_shape


class Vit(nn.Module):
    """Patches through one linear layer, positions added, blocks, a norm, the mean of all patches, ``head``."""

    def __init__(
        self, patch: int, patches: int, width: int, depth: int, heads: int, dropout: float, channels: int, classes: int
    ):  # fmt: skip
        super().__init__()
        self.patch = patch
        self.embed = nn.Linear(channels * patch * patch, width)
        self.position = nn.Parameter(torch.zeros(1, patches, width))
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*(Block(width, heads, False, dropout) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)
        initialise(self, depth)
        nn.init.normal_(self.position, 0, 0.02)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, classes)."""
        side = self.patch
        patches = x.unfold(2, side, side).unfold(3, side, side)  # (N, C, rows, columns, side, side)
        x = self.embed(patches.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2))
        x = self.blocks(self.dropout(x + self.position))
        return self.head(self.norm(x).mean(1))


def vit_tiny(
    patch: int = 4,
    width: int = 96,
    depth: int = 4,
    heads: int = 4,
    dropout: float = 0.0,
    input_shape: Sequence[int] = (3, 32, 32),
    classes: int = 10,
) -> Vit:
    """A small vision transformer; queries, keys, values and patches go through linear layers of their own.

    Args:
        patch: pixels of a patch's side; it divides the image.
        width: features of a patch.
        depth: blocks.
        heads: attention heads; they divide the width.
        dropout: share dropped after the embedding and at the end of each residual branch.
        input_shape: (C, H, W) of an image.
        classes: number of outputs.

    References:
        Dosovitskiy et al., An Image is Worth 16x16 Words, ICLR 2021, section 3.1, https://arxiv.org/abs/2010.11929

    Fidelity:
        The mean of all patches is classified, not a token of its own; sizes are for images of 32x32.

    Example:
        >>> vit_tiny(width=8, depth=1, heads=2)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    check(width, depth, heads, dropout)
    channels, height, side = image_shape("vit-tiny", input_shape)
    if patch < 1 or height % patch or side % patch:
        raise ValueError(f"patch {patch} does not divide images of {height}x{side}")
    patches = (height // patch) * (side // patch)
    return Vit(patch, patches, width, depth, heads, dropout, channels, classes)
