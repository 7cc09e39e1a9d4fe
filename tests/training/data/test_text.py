import pytest
import torch

from startsparse.training import data
from startsparse.training.data import Batches, DamagedData, Options, TextSplit, vocabulary

ALPHABET = "abcdefghij"


@pytest.fixture
def file(tmp_path):
    """A text of 1,000 characters whose next character is always the next letter."""
    path = tmp_path / "letters.txt"
    path.write_text(ALPHABET * 100)
    return path


def load(path, context=9, **options):
    return data.load(f"text:{path}", options=Options(context=context), **options)


def test_parts_are_stretches_of_the_text(file):
    whole = load(file, validation=0.2)
    assert (whole.classes, whole.input_shape, vocabulary(file)) == (10, (9,), ALPHABET)
    # the last 100 characters are the test part: 11 windows; the 900 before make 99, of which 20 are held out
    assert (len(whole.train), len(whole.validation), len(whole.test)) == (79, 20, 11)
    assert data.describe(f"text:{file}", options=Options(context=9)).examples == 99
    lengths = [len(part.tokens) for part in (whole.train, whole.validation, whole.test)]
    assert lengths == [79 * 9 + 1, 20 * 9 + 1, 100] and sum(lengths) <= 1000
    assert whole.test.tokens[0] == 0  # character 900
    assert whole.validation.tokens[0] == (79 * 9 + 1) % 10


def test_labels_are_the_characters_that_follow(file):
    whole = load(file)
    for part in (whole.train, whole.validation, whole.test):
        assert torch.equal(part.labels, (part.inputs + 1) % 10)
        assert torch.equal(part.inputs[1:, 0], part.labels[:-1, -1])  # windows touch, none is left out


def test_the_split_does_not_depend_on_the_seed(file):
    assert torch.equal(load(file, seed=0).validation.tokens, load(file, seed=1).validation.tokens)


def test_every_epoch_cuts_elsewhere_and_can_be_taken_up_again(file):
    split = load(file).train
    walked = Batches(split, 8, seed=3)
    starts = [{int(window[0]) for window in walked.get(epoch, 0)[0]} for epoch in range(4)]
    assert all(torch.equal((x + 1) % 10, y) for x, y in (walked.get(epoch, 1) for epoch in range(4)))
    assert len({frozenset(found) for found in starts}) > 1
    jumped = Batches(split, 8, seed=3).get(3, 1)
    assert torch.equal(jumped[0], walked.get(3, 1)[0])
    every = torch.cat([split.of_epoch(7).inputs.flatten(), split.of_epoch(7).labels[-1:, -1]])
    assert torch.equal(every.sort().values, split.tokens.sort().values)  # each character once


def test_a_stretch_without_windows():
    assert len(TextSplit.cut(torch.arange(0), 4)) == len(TextSplit.cut(torch.arange(4), 4)) == 0
    assert len(TextSplit.cut(torch.arange(5), 4)) == 1


def test_characters_of_any_language(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("żółw \N{SNOWMAN} 水 " * 30, encoding="utf-8")
    assert "水" in vocabulary(path) and load(path, context=4).classes == len(set("żółw \N{SNOWMAN} 水 "))


def test_bad_texts_are_named(tmp_path, file):
    with pytest.raises(
        ValueError, match=r"letters.txt: a text of 1,000 characters .* a context of 200: .* needs 201"
    ):
        load(file, context=200)
    with pytest.raises(FileNotFoundError, match=r"no data set text:nowhere.txt"):
        load("nowhere.txt")
    (tmp_path / "bytes.txt").write_bytes(b"abc\xff" * 100)
    with pytest.raises(DamagedData, match=r"bytes.txt is not UTF-8 text: .* at byte 3"):
        load(tmp_path / "bytes.txt")
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(ValueError, match="a text of 0 characters is too short"):
        load(tmp_path / "empty.txt")
    with pytest.raises(ValueError, match=r"context: 2 characters or more were expected, got 1"):
        load(file, context=1)
    with pytest.raises(ValueError, match=r"size: the data set text:.* has no such option .it has context"):
        data.load(f"text:{file}", options=Options(size=3))
    with pytest.raises(ValueError, match="text: is followed by a text file"):
        data.load("text:")


@pytest.mark.data
def test_the_real_text(real_data):
    whole = load(real_data("tinyshakespeare") / "input.txt", context=64)
    assert whole.classes == 65
    assert len(whole.train) + len(whole.validation) == (1_115_394 - 111_539 - 2) // 64
    known = vocabulary(real_data("tinyshakespeare") / "input.txt")
    first = "".join(known[i] for i in whole.train.inputs[0])
    assert first.startswith("First Citizen:")
