"""One image file to one square of bytes, with Pillow."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np

from startsparse.training.data.errors import DamagedData, MissingData
from startsparse.training.names import require

MARGIN_FROM = 128
"""Images of this size and more are resized to 8/7 of it before their middle is cut out (256 for 224)."""


def size_of(path: Path) -> tuple[int, int]:
    """(width, height) of an image; only its header is read."""
    with _open(path) as picture:
        return picture.size


def read(path: Path, size: int, draws: np.ndarray | None = None) -> np.ndarray:
    """uint8 (3, size, size) of one file: its middle, or the part that ``draws`` says (see ``random_part``)."""
    with _open(path) as picture:
        try:
            return square(picture.convert("RGB"), size, draws)
        except (OSError, ValueError, SyntaxError) as error:
            raise DamagedData(f"{path}: the image is damaged ({error}); fetch it again") from error


def square(picture: Any, size: int, draws: np.ndarray | None = None) -> np.ndarray:
    """uint8 (3, size, size) of an RGB image.

    Its shorter side is resized (to 8/7 of ``size`` from 128 on) and the middle cut out; with ``draws`` the part they
    say is resized instead. An image that has the size already stays as it is.
    """
    if draws is not None:
        left, top, width, height = random_part(picture.width, picture.height, draws)
        picture = picture.resize((size, size), resample=2, box=(left, top, left + width, top + height))
    elif picture.size != (size, size):
        margin = size * 8 / 7 if size >= MARGIN_FROM else size
        cut = min(picture.size) * size / margin
        left, top = ((side - cut) / 2 for side in picture.size)
        picture = picture.resize((size, size), resample=2, box=(left, top, left + cut, top + cut))
    return np.asarray(picture).transpose(2, 0, 1)


def random_part(width: int, height: int, draws: np.ndarray) -> tuple[float, float, float, float]:
    """(left, top, width, height) of a random part of 8 % to all of an image, at most 4/3 as long as wide.

    Args:
        width: of the image.
        height: of the image.
        draws: numbers in [0, 1), (tries, 4): area, shape, left and top of each try. The first that fits is taken, or
            the largest square in the middle.

    References:
        Szegedy et al., Going Deeper with Convolutions, CVPR 2015, section 6, https://arxiv.org/abs/1409.4842

    Example:
        >>> random_part(100, 50, np.array([[0.0, 0.5, 0.0, 1.0]]))  # 8 % of the area, a square, at the bottom left
        (0.0, 30.0, 20.0, 20.0)
    """
    for area, shape, left, top in draws.tolist():
        wanted = (0.08 + 0.92 * area) * width * height
        ratio = math.exp((2 * shape - 1) * math.log(4 / 3))
        across, down = math.sqrt(wanted * ratio), math.sqrt(wanted / ratio)
        if across <= width and down <= height:
            return left * (width - across), top * (height - down), across, down
    side = float(min(width, height))
    return (width - side) / 2, (height - side) / 2, side, side


def _open(path: Path) -> Any:
    image = require("PIL.Image", "decoding images")
    try:
        return image.open(io.BytesIO(path.read_bytes()))
    except FileNotFoundError as error:
        raise MissingData(f"the image {path} is missing") from error
    except (OSError, ValueError, SyntaxError) as error:
        raise DamagedData(f"{path}: not an image ({error}); fetch it again") from error
