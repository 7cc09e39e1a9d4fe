import pytest
import torch

from startsparse.training.data import AUGMENTS, Batches, Split, in_order, random_crop, random_flip


@pytest.fixture
def split():
    inputs = torch.arange(20 * 3 * 8 * 8).remainder(251).to(torch.uint8).view(20, 3, 8, 8)
    return Split(inputs, torch.arange(20))


def test_an_epoch_is_a_permutation_that_depends_on_seed_and_epoch(split):
    batches = Batches(split, 5, seed=1)

    def order(batches, epoch):
        return torch.cat([batches.get(epoch, i)[1] for i in range(len(batches))]).tolist()

    assert sorted(order(batches, 0)) == list(range(20))
    assert order(batches, 0) != order(batches, 1)
    assert order(batches, 1) != order(Batches(split, 5, seed=2), 1)


def test_any_position_can_be_taken_up_again(split):
    walked = Batches(split, 4, seed=0, augment=AUGMENTS["crop-flip"])
    for epoch in range(2):
        for i in range(len(walked)):
            inputs, labels = walked.get(epoch, i)
    jumped = Batches(split, 4, seed=0, augment=AUGMENTS["crop-flip"]).get(1, 4)
    assert torch.equal(inputs, jumped[0]) and torch.equal(labels, jumped[1])


def test_global_random_state_is_left_alone(split):
    before = torch.get_rng_state()
    Batches(split, 4, seed=0, augment=AUGMENTS["crop-flip"]).get(0, 0)
    assert torch.equal(before, torch.get_rng_state())


def test_a_crop_is_a_shift_with_zeros():
    image = torch.arange(1, 65, dtype=torch.uint8).view(1, 1, 8, 8)
    padded = torch.nn.functional.pad(image, (4,) * 4)[0, 0]
    windows = [padded[y : y + 8, x : x + 8] for y in range(9) for x in range(9)]
    generator = torch.Generator().manual_seed(0)
    crops = random_crop(image.repeat(200, 1, 1, 1), generator)
    assert all(any(torch.equal(crop[0], window) for window in windows) for crop in crops)
    assert len({crop.numpy().tobytes() for crop in crops}) > 60  # of 81 shifts


def test_a_flip_mirrors_about_half():
    image = torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8)
    flipped = random_flip(image.repeat(400, 1, 1, 1), torch.Generator().manual_seed(0))
    mirrored = sum(torch.equal(picture, image[0].flip(-1)) for picture in flipped)
    assert 160 < mirrored < 240
    assert mirrored + sum(torch.equal(picture, image[0]) for picture in flipped) == 400


def test_in_order_gives_every_example_once(split):
    assert torch.cat([labels for _, labels in in_order(split, 7)]).tolist() == list(range(20))


def test_small_and_empty_splits(split):
    assert len(Batches(split, 64, seed=0)) == 1
    with pytest.raises(ValueError, match="empty"):
        Batches(split.take(torch.empty(0, dtype=torch.long)), 4, seed=0)
