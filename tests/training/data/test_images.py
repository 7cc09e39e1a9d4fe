import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from startsparse.training import data
from startsparse.training.data import AUGMENTS, Batches, DamagedData, MissingData, Options, images, pictures


def picture(path, width=8, height=8, seed=0, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return pixels


@pytest.fixture
def folder(tmp_path, own_cache):
    """Two classes, four images to train on and two to test, 8x8."""
    home = tmp_path / "animals"
    for seed, name in enumerate(["train/cat/1.png", "train/cat/2.png", "train/dog/a.png", "train/dog/b.PNG"]):
        picture(home / name, seed=seed)
    picture(home / "test/cat/1.png", seed=7)
    picture(home / "test/dog/1.png", seed=8)
    (home / "train/dog/notes.txt").write_text("no image")
    return home


def load(folder, size=None, **options):
    return data.load(f"folder:{folder}", options=Options(size=size), **options)


@pytest.fixture
def on_disk(monkeypatch):
    """As for a set that does not fit in memory."""
    monkeypatch.setattr(images, "IN_MEMORY", 0)


def test_classes_are_folders(folder, own_cache):
    whole = load(folder, validation=0)
    assert (whole.classes, whole.input_shape) == (2, (3, 8, 8))
    assert whole.train.labels.tolist() == [0, 0, 1, 1] and whole.test.labels.tolist() == [0, 1]
    expected = np.random.default_rng(2).integers(0, 256, (8, 8, 3), dtype=np.uint8).transpose(2, 0, 1)
    assert torch.equal(whole.train.inputs[2], torch.from_numpy(expected))
    assert len(list(own_cache.glob("animals-*.decoded"))) == 1
    shutil.rmtree(folder / "train" / "cat")
    with pytest.raises(MissingData, match="train holds 1 folders"):
        load(folder)


def test_images_of_mixed_sizes_are_named_or_resized(folder):
    picture(folder / "train/dog/b.PNG", 12, 10)
    with pytest.raises(DamagedData, match=r"b.PNG has 12x10 pixels, .*1.png has 8x8: .* need data.size"):
        load(folder)
    resized = load(folder, size=6, validation=0)
    assert resized.train.inputs.shape == (4, 3, 6, 6)
    picture(folder / "train/cat/1.png", 9, 8)
    with pytest.raises(DamagedData, match=r"images that are not square need data.size"):
        data.describe(f"folder:{folder}")


def test_the_middle_is_cut_out():
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 200
    assert (pictures.square(Image.fromarray(wide), 10) == 200).all()
    large = np.zeros((1024, 1024, 3), np.uint8)
    large[64:-64, 64:-64] = 200  # 7/8 of the side
    cut = pictures.square(Image.fromarray(large), 224)
    assert cut.shape == (3, 224, 224) and (cut[:, 2:-2, 2:-2] == 200).all() and cut.mean() > 199


def test_grey_images_are_made_colour(folder):
    picture(folder / "train/cat/1.png", mode="L")
    assert load(folder, validation=0).input_shape == (3, 8, 8)


def test_files_are_decoded_when_they_are_looked_at(folder, on_disk, own_cache):
    lazy = load(folder, validation=1)
    assert isinstance(lazy.train.inputs, images.ImageFiles) and not own_cache.exists()
    assert lazy.input_shape == (3, 8, 8) and lazy.to("cpu").train.inputs.shape == (3, 3, 8, 8)
    batches = Batches(lazy.train, 2, seed=0, augment=AUGMENTS["crop-flip"])
    inputs, labels = batches.get(1, 0)
    assert inputs.shape == (2, 3, 8, 8) and inputs.dtype == torch.uint8
    plain, again = Batches(lazy.train, 2, seed=0).get(1, 0)
    assert torch.equal(labels, again) and not torch.equal(plain, inputs)
    assert [x.shape[0] for x, _ in data.in_order(lazy.test, 1)] == [1, 1]


def test_on_disk_and_in_memory_are_the_same_images(folder, monkeypatch):
    whole = load(folder, size=5)
    monkeypatch.setattr(images, "IN_MEMORY", 0)
    lazy = load(folder, size=5)
    assert torch.equal(lazy.train.inputs.decode(), whole.train.inputs)
    assert torch.equal(lazy.train.labels, whole.train.labels)


@pytest.mark.parametrize("where", ["in memory", "on disk"])
def test_random_parts_can_be_taken_up_again(folder, monkeypatch, where):
    if where == "on disk":
        monkeypatch.setattr(images, "IN_MEMORY", 0)
    split = load(folder, size=8, validation=0).train
    walked = Batches(split, 4, seed=0, augment=AUGMENTS["resized-crop-flip"])
    first, second = walked.get(0, 0)[0], walked.get(1, 0)[0]
    assert first.dtype == torch.uint8 and first.shape == (4, 3, 8, 8) and not torch.equal(first, second)
    assert torch.equal(Batches(split, 4, seed=0, augment=AUGMENTS["resized-crop-flip"]).get(1, 0)[0], second)


def test_a_part_in_memory_is_the_part_that_was_drawn():
    """A picture whose red says the column and whose green the row: the ends of a part can be read off it."""
    size = 64
    ramp = torch.arange(size, dtype=torch.uint8) * 4
    image = torch.stack([ramp.expand(size, size), ramp[:, None].expand(size, size), ramp.expand(size, size)])[
        None
    ]
    found = AUGMENTS["resized-crop-flip"](image, torch.Generator().manual_seed(1))[0].float()
    draws = torch.rand(1, 10, 4, generator=torch.Generator().manual_seed(1))[0].numpy()
    left, top, width, height = pictures.random_part(size, size, draws)
    columns = found[0].mean(0).sort().values / 4  # a mirror turns them round
    assert abs(float(columns[0]) - left) < 1.5 and abs(float(columns[-1]) - (left + width)) < 1.5
    rows = found[1].mean(1) / 4
    assert abs(float(rows[0]) - top) < 1.5 and abs(float(rows[-1]) - (top + height)) < 1.5


def test_random_parts_lie_inside_and_have_their_share():
    draws = np.random.default_rng(0).random((500, 10, 4))
    shares = []
    for numbers in draws:
        left, top, width, height = pictures.random_part(40, 30, numbers)
        assert left >= 0 and top >= 0 and left + width <= 40 + 1e-9 and top + height <= 30 + 1e-9
        shares.append(width * height / 1200)
        assert 3 / 4 - 1e-9 <= width / height <= 4 / 3 + 1e-9
    assert min(shares) >= 0.08 - 1e-9 and 0.4 < sum(shares) / 500 < 0.6
    assert pictures.random_part(100, 1, np.full((1, 4), 0.5)) == (49.5, 0.0, 1.0, 1.0)  # none fits


def test_tiny_imagenet_has_its_test_labels_in_a_file(folder):
    for number, name in enumerate("xy"):
        picture(folder / f"val/images/{name}.png", seed=number)
    (folder / "val/val_annotations.txt").write_text("x.png\tdog\t0\t0\t9\t9\ny.png\tcat\t0\t0\t9\t9\n")
    assert load(folder, validation=0).test.labels.tolist() == [1, 0]
    (folder / "val/val_annotations.txt").write_text("x.png\tcow\t0\n")
    with pytest.raises(DamagedData, match="line 1: the class 'cow' is not one of train/"):
        load(folder)


def test_what_is_missing_or_damaged_is_named(folder, tmp_path):
    (folder / "train/dog/a.png").write_bytes(b"no image")
    with pytest.raises(DamagedData, match=r"a.png: not an image"):
        load(folder)
    content = (folder / "train/cat/1.png").read_bytes()
    (folder / "train/dog/a.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(DamagedData, match=r"a.png: the image is damaged"):
        load(folder)
    (folder / "test/cow").mkdir()
    with pytest.raises(DamagedData, match=r"cow: a class that .*train does not have"):
        load(folder)
    shutil.rmtree(folder / "test")
    with pytest.raises(MissingData, match="has no test/CLASS"):
        load(folder)
    shutil.rmtree(folder / "train/dog")
    (folder / "train/dog").mkdir()
    with pytest.raises(MissingData, match="dog holds no images"):
        data.describe(f"folder:{folder}")
    with pytest.raises(MissingData, match="has no folder train/"):
        data.describe(f"folder:{tmp_path}")


def test_named_folders_are_looked_for_in_the_data_folder(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("STARTSPARSE_DATA", str(tmp_path))
    assert "imagenet does not exist: set STARTSPARSE_DATA" in (data.missing("imagenet") or "")
    with pytest.raises(MissingData, match=r"no data set imagenet: .* with train/CLASS"):
        data.load("imagenet")
    folder.rename(tmp_path / "imagenet")
    assert data.missing("imagenet") is None
    assert data.load("imagenet", options=Options(size=8), validation=0).input_shape == (3, 8, 8)
    assert data.describe("imagenet").shape == (3, 224, 224)
    with pytest.raises(ValueError, match=r"context: the data set imagenet has no such option .it has size"):
        data.describe("imagenet", options=Options(context=8))
