import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from startsparse.training import data, files
from startsparse.training.data import DamagedData, MissingData
from startsparse.training.data.parquet import find_shards, read_folder


def png(pixels):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def pictures(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def write_shard(path, encoded, labels):
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"bytes": data, "path": f"{i}.png"} for i, data in enumerate(encoded)]
    pq.write_table(pa.table({"img": rows, "label": labels}), path)


@pytest.fixture
def folder(tmp_path, own_cache):
    home = tmp_path / "cifar10" / "plain_text"
    for shard in range(2):
        write_shard(home / f"train-0000{shard}-of-00002.parquet", map(png, pictures(3, shard)), [shard, 1, 9])
    write_shard(home / "test-00000-of-00001.parquet", map(png, pictures(2, 7)), [4, 5])
    return tmp_path / "cifar10"


def test_decodes_in_order_and_then_from_the_cache(folder, own_cache, monkeypatch):
    train, test = read_folder(folder)
    expected = np.concatenate([pictures(3, 0), pictures(3, 1)]).transpose(0, 3, 1, 2)
    assert torch.equal(train.inputs, torch.from_numpy(expected))
    assert train.labels.tolist() == [0, 1, 9, 1, 1, 9] and test.labels.tolist() == [4, 5]
    assert len(list(own_cache.glob("cifar10-*.decoded"))) == 1
    assert not [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".parquet"]
    monkeypatch.setattr("startsparse.training.data.parquet._decode_shards", None)
    again, _ = read_folder(folder)
    assert torch.equal(again.inputs, train.inputs)


def test_a_damaged_cache_is_made_again(folder, own_cache):
    train, _ = read_folder(folder)
    (cached,) = own_cache.iterdir()
    content = bytearray(cached.read_bytes())
    content[-1] ^= 1
    cached.write_bytes(content)
    with pytest.warns(UserWarning, match="decoding cifar10 again"):
        again, _ = read_folder(folder)
    assert torch.equal(again.inputs, train.inputs)
    assert files.load_tree(cached)


def test_changed_data_are_another_cache(folder, own_cache):
    read_folder(folder)
    write_shard(folder / "plain_text" / "test-00000-of-00001.parquet", [png(pictures(1, 8)[0])], [0])
    assert len(read_folder(folder)[1]) == 1
    assert len(list(own_cache.iterdir())) == 2


def test_a_full_disk_costs_only_the_cache(folder, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("startsparse.training.data.cache.save_tree", full)
    with pytest.warns(UserWarning, match="could not be kept"):
        assert len(read_folder(folder)[0]) == 6


def test_a_missing_shard_is_counted(folder):
    (folder / "plain_text" / "train-00001-of-00002.parquet").unlink()
    with pytest.raises(MissingData, match="1 of 2 train shards"):
        find_shards(folder, "train")
    with pytest.raises(MissingData, match=r"holds no train-"):
        find_shards(folder.parent, "train")


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-40]), "damaged or of another schema"),
        (lambda path: path.write_bytes(b"PAR1 nonsense PAR1"), "damaged or of another schema"),
        (lambda path: write_shard(path, [b"no picture"], [1]), "row 0: not an image"),
        (lambda path: write_shard(path, [png(pictures(1)[0, :16])], [1]), r"an image of shape \(3, 16, 32\)"),
        (lambda path: write_shard(path, [png(pictures(1)[0])], [10]), "labels from 10 to 10"),
        (lambda path: pq.write_table(pa.table({"x": [1]}), path), "no image or label column"),
    ],
)
def test_a_damaged_shard_is_named(folder, harm, says):
    path = folder / "plain_text" / "test-00000-of-00001.parquet"
    harm(path)
    with pytest.raises(DamagedData, match=says) as caught:
        read_folder(folder)
    assert path.name in str(caught.value)


def test_a_hundred_classes(folder, tmp_path):
    for path in (folder / "plain_text").iterdir():
        rows = [{"bytes": png(picture), "path": "x.png"} for picture in pictures(2)]
        pq.write_table(pa.table({"img": rows, "fine_label": [3, 99], "coarse_label": [0, 1]}), path)
    folder.rename(tmp_path / "cifar100")
    whole = data.load("cifar100", root=tmp_path, validation=0)
    assert whole.classes == 100 and whole.test.labels.tolist() == [3, 99]


@pytest.mark.data
def test_the_real_files(real_data):
    train, test = read_folder(real_data("cifar10"))
    assert (len(train), len(test)) == (50_000, 10_000)
    assert torch.bincount(train.labels).tolist() == [5000] * 10
    assert torch.allclose(
        train.inputs[::10].float().mean((0, 2, 3)) / 255, torch.tensor([0.491, 0.482, 0.447]), atol=0.005
    )
