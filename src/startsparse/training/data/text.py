"""Text files, one token a character: what is seen, and the characters that follow."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from startsparse.training.data.entry import Entry
from startsparse.training.data.errors import DamagedData, MissingData
from startsparse.training.data.options import Options
from startsparse.training.data.splits import Split

CONTEXT = 64  # characters, where nothing is said
TEST_SHARE = 0.1


@dataclass(frozen=True)
class TextSplit(Split):
    """A stretch of text cut into windows of ``context`` characters that do not overlap.

    Attributes:
        tokens: int64 (n,); ``inputs`` and ``labels`` are views into it, the latter one character further on.
    """

    tokens: Tensor

    @classmethod
    def cut(cls, tokens: Tensor, context: int) -> TextSplit:
        """All (n - 1) // context windows of a stretch.

        Example:
            >>> split = TextSplit.cut(torch.arange(8), 3)
            >>> split.inputs.tolist(), split.labels.tolist()
            ([[0, 1, 2], [3, 4, 5]], [[1, 2, 3], [4, 5, 6]])
        """
        count = max(0, len(tokens) - 1) // context
        inputs, labels = (tokens[start : start + count * context].view(count, context) for start in range(2))
        return cls(inputs, labels, tokens)

    def take(self, index: Tensor) -> Split:
        """The windows at ``index``; no longer a stretch."""
        return Split(self.inputs[index], self.labels[index])

    def to(self, device: torch.device | str) -> TextSplit:
        """The same stretch on ``device``."""
        return TextSplit.cut(self.tokens.to(device), self.inputs.shape[1])

    def hold_out(self, count: int, seed: int) -> tuple[Split, Split]:
        """(the rest, the last ``count`` windows): by position, so that no window is in both."""
        context = self.inputs.shape[1]
        border = (len(self) - count) * context + 1
        return TextSplit.cut(self.tokens[:border], context), TextSplit.cut(self.tokens[border:], context)

    def of_epoch(self, draw: int) -> TextSplit:
        """Windows that begin elsewhere: the stretch turned by ``draw`` characters, its end going on at its start."""
        return TextSplit.cut(self.tokens.roll(-(draw % max(1, len(self.tokens)))), self.inputs.shape[1])


def describe(path: Path, options: Options) -> Entry:
    """What is known of a text file: the characters in it, and how many windows its training part makes."""
    context = options.context or CONTEXT
    train, _ = read(path, context)
    characters = len(vocabulary(path))
    return Entry(
        "a text file",
        (context,),
        len(train),
        lambda path: read(path, context),
        classes=characters,
        is_text=True,
        has_home=False,
    )


def known(summary: str, file: str, characters: int, classes: int) -> Entry:
    """A text that is known by name: so many characters in ``file`` of its folder, so many of them distinct."""
    in_training = characters - round(TEST_SHARE * characters)

    def fit(options: Options) -> Entry:
        context = options.context or CONTEXT

        def read_file(folder: Path) -> tuple[TextSplit, TextSplit]:
            return read(folder / file, context)

        examples = (in_training - 2) // context
        return Entry(
            summary,
            (context,),
            examples,
            read_file,
            classes=classes,
            is_text=True,
            fit=(fit, ("context",)),
        )

    return fit(Options())


def read(path: Path, context: int) -> tuple[TextSplit, TextSplit]:
    """(train, test): the last tenth of the text is the test part.

    Raises:
        ValueError: the text is too short for windows of ``context`` characters.
    """
    tokens = torch.from_numpy(_numbered(path)[1])
    border = len(tokens) - round(TEST_SHARE * len(tokens))
    count = (
        border - 2
    ) // context  # windows of the training part, held out or not; two characters are left over
    test = TextSplit.cut(tokens[border:], context)
    if count < 1 or not len(test):
        raise ValueError(
            f"{path}: a text of {len(tokens):,} characters is too short for a context of {context}: the test part, "
            f"its last tenth, has {len(tokens) - border:,} of them and needs {context + 1}; choose a smaller context"
        )
    return TextSplit.cut(tokens[: count * context + 2], context), test


def vocabulary(path: Path) -> str:
    """The distinct characters of a text file, in order of their code: character i is token i."""
    return "".join(chr(code) for code in _numbered(path)[0])


def _numbered(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """(the codes of the distinct characters, the token of each character)."""
    if not path.is_file():
        raise MissingData(f"no text file {path}")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DamagedData(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    characters = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    codes = np.flatnonzero(np.bincount(characters))
    number = np.zeros(int(codes[-1]) + 1 if len(codes) else 0, np.int64)
    number[codes] = np.arange(len(codes))
    return codes, number[characters]
