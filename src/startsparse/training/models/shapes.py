"""What models ask of their input."""

from __future__ import annotations

from collections.abc import Sequence

LARGE = 64
"""Images with a longer side get the stem of ImageNet where ``stem="auto"``."""


def image_shape(model: str, input_shape: Sequence[int], least: int = 1) -> tuple[int, int, int]:
    """(C, H, W), or an error that names the model.

    Example:
        >>> image_shape("resnet20", (64,))
        Traceback (most recent call last):
        ValueError: resnet20 takes images (channels, height, width), got input_shape (64,)
    """
    if len(input_shape) != 3:
        raise ValueError(
            f"{model} takes images (channels, height, width), got input_shape {tuple(input_shape)}"
        )
    channels, height, width = input_shape
    if min(height, width) < least:
        raise ValueError(f"{model} needs images of {least}x{least} or more, got {height}x{width}")
    return channels, height, width


def has_large_stem(stem: str, height: int, width: int) -> bool:
    """Whether the stem of ImageNet is meant: asked for, or ``auto`` and the images are large.

    Example:
        >>> has_large_stem("auto", 64, 64), has_large_stem("auto", 224, 224), has_large_stem("cifar", 224, 224)
        (False, True, False)
    """
    if stem not in ("auto", "cifar", "imagenet"):
        raise ValueError(f"stem is 'auto', 'cifar' or 'imagenet', got {stem!r}")
    return stem == "imagenet" or (stem == "auto" and max(height, width) > LARGE)
