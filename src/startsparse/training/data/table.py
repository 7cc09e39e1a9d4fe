"""Tables: CSV files, and NumPy arrays in ``.npy`` and ``.npz``. One row an example, one class a row."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from startsparse.names import nearest
from startsparse.training.data.entry import Entry
from startsparse.training.data.errors import DamagedData, MissingData
from startsparse.training.data.options import Options
from startsparse.training.data.splits import Split
from startsparse.training.seeds import derive

LABELS = ("label", "target", "class", "y")
"""Columns taken for the class where no ``label`` is named."""
TEST_SHARE = 0.2

Arrays = tuple[np.ndarray, np.ndarray]


def describe(path: Path, options: Options) -> Entry:
    """What is known of a table: it is read whole to be told."""
    train, test = read(path, options.label)
    classes = int(max(train.labels.max(), test.labels.max())) + 1

    def again(path: Path) -> tuple[Split, Split]:
        return read(path, options.label)

    shape = tuple(train.inputs.shape[1:])
    return Entry("a table", shape, len(train), again, classes=classes, has_home=False)


def read(path: Path, label: str | None) -> tuple[Split, Split]:
    """(train, test). Without a test part of its own, a fifth of the rows, the same ones for every seed, is it.

    Args:
        path: ``.csv`` with a header row; ``.npy`` of rows and columns; ``.npz`` with x and y, or with x_train,
            y_train, x_test and y_test.
        label: the column of the class: a name, for ``.npy`` a number (the last one if None).

    Raises:
        ValueError: the file cannot be a table of numbers with a class in each row; file, row and column are named.
    """
    if not path.is_file():
        raise MissingData(f"no table {path}")
    readers = {".csv": _csv, ".npy": _npy, ".npz": _npz}
    if path.suffix.lower() not in readers:
        raise ValueError(f"{path}: a table is a .csv, .npy or .npz file")
    train, test = readers[path.suffix.lower()](path, label)
    if test is None:
        order = np.random.Generator(np.random.PCG64(derive(0, "test"))).permutation(len(train[1]))
        held = np.sort(order[: round(TEST_SHARE * len(order))])
        rest = np.sort(order[len(held) :])
        train, test = (train[0][rest], train[1][rest]), (train[0][held], train[1][held])
    known, _ = np.unique(np.concatenate([train[1], test[1]]), return_inverse=True)
    if not len(train[1]) or not len(test[1]):
        raise DamagedData(f"{path}: {len(train[1])} rows to train on and {len(test[1])} to test: too few")
    if len(known) < 2:
        raise DamagedData(f"{path}: every row is of the class {known[0]}: there is nothing to learn")
    return _split(path, train, known), _split(path, test, known)


def moments(split: Split) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each feature (or channel); a feature that never changes is divided by 1.

    Example:
        >>> moments(Split(torch.tensor([[1.0, 5.0], [3.0, 5.0]]), torch.tensor([0, 1])))
        ((2.0, 5.0), (1.0, 1.0))
    """
    values: Tensor = split.inputs.double()
    axes = [axis for axis in range(values.dim()) if axis != 1]
    mean, std = values.mean(axes), values.std(axes, correction=0)
    std = torch.where(std > 0, std, torch.ones_like(std))
    return tuple(mean.tolist()), tuple(std.tolist())


def _split(path: Path, arrays: Arrays, known: np.ndarray) -> Split:
    inputs = np.ascontiguousarray(arrays[0], np.float32)
    bad = np.argwhere(~np.isfinite(inputs))
    if len(bad):
        raise DamagedData(
            f"{path}: {len(bad)} values are missing or not finite, the first in row {bad[0][0]}, column {bad[0][1]}"
        )
    return Split(torch.from_numpy(inputs), torch.from_numpy(np.searchsorted(known, arrays[1])).long())


def _csv(path: Path, label: str | None) -> tuple[Arrays, None]:
    try:
        with open(path, newline="", encoding="utf-8") as file:
            header, *rows = list(csv.reader(file)) or [[]]
    except (csv.Error, UnicodeDecodeError) as error:
        raise DamagedData(f"{path} is not a CSV file: {error}") from error
    header = [name.strip() for name in header]
    chosen = label if label is not None else next((name for name in LABELS if name in header), None)
    if chosen not in header or len(header) < 2:
        asked = f"no column {chosen!r}" if chosen else f"none of its columns is called {', '.join(LABELS)}"
        raise ValueError(f"{path}: label: {asked}; {nearest(chosen or '', header)}")
    place = header.index(chosen)
    values = np.empty((len(rows), len(header) - 1), np.float64)
    for number, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise DamagedData(f"{path}, line {number}: {len(row)} values for {len(header)} columns")
        for column, text in enumerate(row):
            if column != place:
                values[number - 2, column - (column > place)] = _number(path, number, header[column], text)
    return (values, _classes(path, np.array([row[place].strip() for row in rows]))), None


def _number(path: Path, line: int, column: str, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        what = f"{text!r} is no number" if text.strip() else "a value is missing"
        raise DamagedData(
            f"{path}, line {line}, column {column!r}: {what}; a table holds numbers besides its label"
        ) from error


def _npy(path: Path, label: str | None) -> tuple[Arrays, None]:
    table = _load(path)
    if not isinstance(table, np.ndarray) or table.ndim != 2 or table.shape[1] < 2:
        raise DamagedData(
            f"{path}: an array of rows and two columns or more was expected, got {_shape(table)}"
        )
    try:
        place = range(table.shape[1])[-1 if label is None else int(label)]
    except (ValueError, IndexError) as error:
        raise ValueError(
            f"{path}: label: a column from 0 to {table.shape[1] - 1} was expected, got {label!r}"
        ) from error
    return (np.delete(table, place, 1), _classes(path, table[:, place])), None


def _npz(path: Path, label: str | None) -> tuple[Arrays, Arrays | None]:
    arrays = _load(path)
    held = set(arrays) if isinstance(arrays, dict) else set()
    if label is not None:
        raise ValueError(f"{path}: label: the classes of an .npz file are its array y")
    if {"x_train", "y_train", "x_test", "y_test"} <= held:
        return _pair(path, arrays, "_train"), _pair(path, arrays, "_test")
    if {"x", "y"} <= held:
        return _pair(path, arrays, ""), None
    raise DamagedData(
        f"{path}: arrays x and y, or x_train, y_train, x_test and y_test were expected, got {sorted(held)}"
    )


def _pair(path: Path, arrays: dict[str, np.ndarray], suffix: str) -> Arrays:
    inputs, labels = arrays[f"x{suffix}"], arrays[f"y{suffix}"]
    if inputs.ndim < 2 or inputs.dtype.kind not in "fiub" or labels.shape != inputs.shape[:1]:
        raise DamagedData(
            f"{path}: x{suffix} {_shape(inputs)} and y{suffix} {_shape(labels)} are not rows of numbers and a class each"
        )
    return inputs, _classes(path, labels)


def _load(path: Path) -> Any:
    try:
        loaded = np.load(path, allow_pickle=False)
        return loaded if isinstance(loaded, np.ndarray) else dict(loaded)
    except Exception as error:  # zip, header and pickle errors are of many kinds
        raise DamagedData(f"{path} is no NumPy file of numbers: {str(error).splitlines()[0]}") from error


def _classes(path: Path, labels: np.ndarray) -> np.ndarray:
    """Class labels as they are written; numbers in their order, also where a CSV file holds them."""
    if labels.dtype.kind == "U":
        try:
            labels = labels.astype(np.float64)
        except ValueError:
            return labels
    if labels.dtype.kind == "f":
        if not np.equal(labels, np.round(labels)).all():
            raise ValueError(
                f"{path}: label: {labels[labels != np.round(labels)][0]} is no class; rows are classified here, not fitted"
            )
        return labels.astype(np.int64)
    if labels.dtype.kind not in "iub":
        raise DamagedData(f"{path}: label: classes are numbers or words, got {labels.dtype}")
    return labels


def _shape(value: object) -> str:
    return f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
