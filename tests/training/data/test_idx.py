import gzip

import pytest
import torch

from startsparse.training.data import DamagedData, MissingData
from startsparse.training.data.idx import IMAGES, LABELS, read_folder, read_images, read_labels


def good_folder(folder, write_idx, count=5):
    for part in ("train", "t10k"):
        write_idx(folder / f"{part}-images-idx3-ubyte.gz", (IMAGES, count, 28, 28), bytes(count * 784))
        write_idx(folder / f"{part}-labels-idx1-ubyte.gz", (LABELS, count), bytes(range(count)))
    return folder


def test_reads_what_was_written(tmp_path, write_idx):
    body = bytes(i % 256 for i in range(2 * 784))
    images = read_images(write_idx(tmp_path / "images.gz", (IMAGES, 2, 28, 28), body))
    assert images.shape == (2, 1, 28, 28) and images.dtype == torch.uint8
    assert images[1, 0, 27, 27] == (2 * 784 - 1) % 256
    train, test = read_folder(good_folder(tmp_path / "set", write_idx))
    assert train.labels.tolist() == [0, 1, 2, 3, 4] and len(test) == 5


@pytest.mark.parametrize(
    ("words", "body", "says"),
    [
        ((0x802, 2, 28, 28), bytes(2 * 784), "magic number 0x802, expected 0x803"),
        ((IMAGES, 2, 28, 28), bytes(2 * 784 - 1), "1567 of the 1568 bytes"),
        ((IMAGES, 2, 28, 28), bytes(2 * 784 + 1), "more than the 1568 bytes"),
        ((IMAGES, 2, 32, 28), bytes(2 * 32 * 28), "images of 32x28, expected 28x28"),
        ((IMAGES, 2**31, 28, 28), b"", "claims sizes"),
        ((IMAGES,), b"", "only 4 bytes"),
    ],
)
def test_a_lying_header_is_named_with_its_file(tmp_path, write_idx, words, body, says):
    path = write_idx(tmp_path / "bad.gz", words, body)
    with pytest.raises(DamagedData, match=says) as caught:
        read_images(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("harm", ["truncated", "flipped", "not gzip", "empty"])
def test_a_damaged_gzip_is_named(tmp_path, write_idx, harm):
    path = write_idx(tmp_path / "labels.gz", (LABELS, 2000), bytes(i % 7 for i in range(2000)))
    content = bytearray(path.read_bytes())
    if harm == "truncated":
        content = content[:-12]
    elif harm == "flipped":
        content[len(content) // 2] ^= 0xFF
    else:
        content = bytearray(b"" if harm == "empty" else b"hello, this is text")
    path.write_bytes(content)
    with pytest.raises(DamagedData, match=r"labels\.gz"):
        read_labels(path)


def test_labels_are_checked(tmp_path, write_idx):
    with pytest.raises(DamagedData, match="a label of 12, expected 0 to 9"):
        read_labels(write_idx(tmp_path / "labels.gz", (LABELS, 2), bytes([3, 12])))


def test_a_missing_file_and_a_wrong_count_are_named(tmp_path, write_idx):
    folder = good_folder(tmp_path / "set", write_idx)
    write_idx(folder / "t10k-labels-idx1-ubyte.gz", (LABELS, 4), bytes(4))
    with pytest.raises(DamagedData, match=r"t10k-labels.*4 labels for 5 images"):
        read_folder(folder)
    (folder / "t10k-images-idx3-ubyte.gz").unlink()
    with pytest.raises(MissingData, match="t10k-images"):
        read_folder(folder)


@pytest.mark.data
def test_the_real_files(real_data):
    folder = real_data("fashion-mnist")
    train, test = read_folder(folder)
    assert (len(train), len(test)) == (60_000, 10_000)
    assert torch.bincount(train.labels).tolist() == [6000] * 10
    assert abs(float(train.inputs.float().mean()) / 255 - 0.2860) < 1e-4
    with gzip.open(folder / "train-labels-idx1-ubyte.gz") as file:
        assert file.read(9)[8] == train.labels[0] == 9
