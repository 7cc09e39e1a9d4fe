"""Folders of images, one folder a class: decoded whole where they fit in memory, else when they are looked at."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from startsparse.training.data import pictures
from startsparse.training.data.cache import keep_decoded
from startsparse.training.data.entry import IMAGENET_MEAN, IMAGENET_STD, Entry
from startsparse.training.data.errors import DamagedData, MissingData
from startsparse.training.data.options import Options
from startsparse.training.data.splits import Split

ENDINGS = (".jpeg", ".jpg", ".png", ".bmp", ".webp", ".gif", ".ppm")
IN_MEMORY = 2 * 2**30  # bytes: a decoded set of more is decoded image by image


class ImageFiles:
    """Images on disk that stand where a tensor uint8 (N, 3, size, size) could: choosing some of them reads nothing.

    Args:
        paths: the files.
        size: side of the square they are resized and cut to.
        device: where they are needed once they are decoded.
    """

    def __init__(self, paths: np.ndarray, size: int, device: torch.device | str = "cpu"):
        self.paths, self.size, self.device = paths, size, torch.device(device)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, 3, size, size)."""
        return (len(self.paths), 3, self.size, self.size)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Tensor | slice) -> ImageFiles:
        chosen = self.paths[index if isinstance(index, slice) else index.cpu().numpy()]
        return ImageFiles(chosen, self.size, self.device)

    def to(self, device: torch.device | str) -> ImageFiles:
        """The same images, for another device."""
        return ImageFiles(self.paths, self.size, device)

    def decode(self, draws: Tensor | None = None) -> Tensor:
        """uint8 (N, 3, size, size) on the device: the middle of each image, or the part that ``draws`` says.

        Args:
            draws: random numbers in [0, 1), (N, tries, 4), as for ``pictures.random_part``.
        """
        pixels = np.empty(self.shape, np.uint8)
        numbers = None if draws is None else draws.cpu().numpy()

        def one(row: int) -> None:
            part = None if numbers is None else numbers[row]
            pixels[row] = pictures.read(Path(self.paths[row]), self.size, part)

        each(one, len(self))
        return torch.from_numpy(pixels).to(self.device)


def each(work: Callable[[int], None], count: int) -> None:
    """Do ``work`` for 0 to ``count``, on several threads: decoding lets go of Python's lock."""
    with ThreadPoolExecutor() as pool:
        for _ in pool.map(work, range(count)):
            pass


def as_tensor(inputs: Tensor | ImageFiles) -> Tensor:
    """The inputs, decoded where they are files."""
    return inputs.decode() if isinstance(inputs, ImageFiles) else inputs


def describe(folder: Path, options: Options) -> Entry:
    """What is known of a folder of images: its classes and files are counted, the first image is opened."""
    classes = class_names(folder)
    paths, _ = _listed(folder / "train", classes)
    size = options.size or _common_size(paths[:1])
    return Entry(
        f"images of {len(classes)} classes",
        (3, size, size),
        len(paths),
        reader(options.size),
        IMAGENET_MEAN,
        IMAGENET_STD,
        classes=len(classes),
        has_home=False,
    )


def known(summary: str, size: int, examples: int, classes: int) -> Entry:
    """A set of colour images in folders that is known by name, cut to ``size`` unless another one is asked for."""

    def fit(options: Options) -> Entry:
        side = options.size or size
        return Entry(
            summary,
            (3, side, side),
            examples,
            reader(side),
            IMAGENET_MEAN,
            IMAGENET_STD,
            classes,
            fit=(fit, ("size",)),
        )

    return fit(Options())


def reader(size: int | None) -> Callable[[Path], tuple[Split, Split]]:
    """A function that reads a folder's (train, test), its images resized to ``size``; None wants them all alike."""
    return lambda folder: read_folder(folder, size)


def read_folder(folder: Path, size: int | None = None) -> tuple[Split, Split]:
    """(train, test) of ``train/CLASS/`` and ``test/CLASS/`` (or ``val/CLASS/``, or Tiny-ImageNet's ``val/``).

    Raises:
        ValueError: an image is damaged, or of another size than the first while ``size`` is None; it is named.
        FileNotFoundError: a part or a class has no images.
    """
    classes = class_names(folder)
    parts = [_listed(folder / "train", classes), _test_part(folder, classes)]
    if size is None:
        side = _common_size([path for paths, _ in parts for path in paths])
    else:
        side = size
    total = sum(len(paths) for paths, _ in parts) * 3 * side * side
    splits = [
        Split(ImageFiles(np.array([str(path) for path in paths], dtype=object), side), torch.tensor(labels))
        for paths, labels in parts
    ]
    if total > IN_MEMORY:
        return splits[0], splits[1]

    def decode() -> tuple[Split, Split]:
        train, test = (Split(split.inputs.decode(), split.labels) for split in splits)
        return train, test

    return keep_decoded(folder.name, _fingerprint(parts, side), decode)


def stamp(path: Path) -> tuple[int, ...]:
    """When a file, or the folders of a set and its first image, were changed last."""
    train = path / "train"
    inside = sorted(entry.path for entry in os.scandir(train) if entry.is_dir()) if train.is_dir() else []
    first = next(iter(_images(Path(inside[0]))), path) if inside else path
    return tuple(Path(place).stat().st_mtime_ns for place in (path, first, *inside))


def class_names(folder: Path) -> list[str]:
    """The classes of a folder: the folders in ``train/``, in order.

    Raises:
        MissingData: there is no such folder, or it holds no classes.
    """
    train = folder / "train"
    if not train.is_dir():
        raise MissingData(
            f"{folder} has no folder train/: train/CLASS/*.png and test/CLASS/*.png were expected"
        )
    found = sorted(entry.name for entry in os.scandir(train) if entry.is_dir())
    if len(found) < 2:
        raise MissingData(f"{train} holds {len(found)} folders: one for each class was expected")
    return found


def _images(folder: Path) -> list[Path]:
    """The image files below a folder, in order."""
    found = [
        Path(where) / name
        for where, _, names in os.walk(folder)
        for name in names
        if name.lower().endswith(ENDINGS)
    ]
    return sorted(found)


def _listed(part: Path, classes: list[str]) -> tuple[list[Path], list[int]]:
    paths: list[Path] = []
    labels: list[int] = []
    for number, name in enumerate(classes):
        found = _images(part / name)
        if not found:
            raise MissingData(f"{part / name} holds no images ({', '.join(ENDINGS)})")
        paths += found
        labels += [number] * len(found)
    return paths, labels


def _test_part(folder: Path, classes: list[str]) -> tuple[list[Path], list[int]]:
    annotations = folder / "val" / "val_annotations.txt"
    if annotations.is_file():  # Tiny-ImageNet: its test part has no labels
        return _annotated(annotations, classes)
    for name in ("test", "val", "validation", "valid"):
        part = folder / name
        inside = {entry.name for entry in os.scandir(part) if entry.is_dir()} if part.is_dir() else set()
        if not inside:
            continue
        if unknown := sorted(inside - set(classes)):
            raise DamagedData(f"{part / unknown[0]}: a class that {folder / 'train'} does not have")
        return _listed(part, classes)
    raise MissingData(
        f"{folder} has no test/CLASS/*.png or val/CLASS/*.png: sort the images of the test part into one folder a class"
    )


def _annotated(file: Path, classes: list[str]) -> tuple[list[Path], list[int]]:
    numbers = {name: number for number, name in enumerate(classes)}
    paths: list[Path] = []
    labels: list[int] = []
    for line, text in enumerate(file.read_text().splitlines(), start=1):
        name, _, rest = text.partition("\t")
        label = rest.partition("\t")[0]
        if label not in numbers:
            raise DamagedData(f"{file}, line {line}: the class {label!r} is not one of train/")
        paths.append(file.parent / "images" / name)
        labels.append(numbers[label])
    return paths, labels


def _common_size(paths: Iterable[Path]) -> int:
    """The side of square images that are all alike."""
    first: tuple[Path, tuple[int, int]] | None = None
    for path in paths:
        size = pictures.size_of(path)
        if first is None:
            first = path, size
        if size != first[1]:
            raise DamagedData(
                f"{path} has {size[0]}x{size[1]} pixels, {first[0]} has {first[1][0]}x{first[1][1]}: "
                f"images of mixed sizes need data.size, the side they are resized to"
            )
    assert first is not None
    if first[1][0] != first[1][1]:
        raise DamagedData(
            f"{first[0]} has {first[1][0]}x{first[1][1]} pixels: images that are not square need data.size, "
            f"the side they are resized to"
        )
    return first[1][0]


def _fingerprint(parts: Iterable[tuple[list[Path], list[int]]], size: int) -> str:
    digest = hashlib.sha256(f"folder 1|{size}".encode())
    for paths, _ in parts:
        for path in paths:
            stat = path.stat()
            digest.update(f"|{path}|{stat.st_size}|{stat.st_mtime_ns}".encode())
    return digest.hexdigest()[:12]
