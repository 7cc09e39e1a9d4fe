"""Iterative pruning: its counts and masks worked out by hand, and what it refuses before anything is trained."""

from __future__ import annotations

import pytest
import torch

from startsparse.methods import DenseView
from startsparse.methods.iterative import IMP, EarlyBird


# keep k of what lives: .5 ** (1/2) = .7071 of 8 is 5.66; .25 ** (1/2) of 6 live in 8: 6 -> 2 over 3.46
@pytest.mark.parametrize(
    ("hyper", "total", "start", "counts"),
    [
        ({"density": 0.5, "levels": 1}, 8, 8, [8, 4]),
        ({"density": 0.5, "levels": 2}, 8, 8, [8, 6, 4]),
        ({"density": 0.25, "levels": 2}, 8, 6, [6, 3, 2]),
        ({"density": 0.512, "prune_fraction": 0.2}, 1000, 1000, [1000, 800, 640, 512]),
        ({"density": 0.1074, "prune_fraction": 0.2}, 100000, 100000, None),
        ({"density": 0.64}, 1000, 1000, [1000, 800, 640]),  # the fewest levels of at most a fifth
        ({"density": 0.6}, 1000, 1000, [1000, 843, 711, 600]),
        ({"density": 1.0}, 8, 8, [8]),
        ({"density": 0.5, "levels": 3}, 8, 4, [4]),  # the source is the ticket
    ],
)
def test_imp_by_hand_counts(hyper, total, start, counts):
    found = IMP(**hyper).counts(total, start)
    if counts is None:
        assert len(found) == 11 and found[-1] == 10740 and found[:4] == [100000, 80002, 64003, 51204]
    else:
        assert found == counts


def test_imp_by_hand_masks():
    weights = torch.tensor([0.3, -0.8, 0.1, 0.7, -0.2, 0.6, 0.5, -0.4])
    view = DenseView("w", weights, torch.ones(8, dtype=torch.bool))
    dropped = IMP(density=0.25).update({"w": view}, 0, 5, None)["w"].dropped
    assert dropped.tolist() == [0, 2, 4]
    left = DenseView(
        "w", torch.tensor([0, 0.2, 0, 0.7, 0, 0.1, 0.9, -0.4]), torch.tensor([0, 1, 0, 1, 0, 1, 1, 1]).bool()
    )
    assert IMP(density=0.25).update({"w": left}, 1, 2, None)["w"].dropped.tolist() == [1, 5, 7]


def test_early_bird_by_hand():
    bird = EarlyBird(density=0.5)
    assert (bird.counts(8, 8), bird.window, bird.tolerance, bird.rewind) == ([8, 4], 4, 0.1, "none")


@pytest.mark.parametrize(
    ("hyper", "says"),
    [
        (
            {"density": 0.05, "prune_fraction": 0.2},
            r"jump over density 0\.05, from 0\.05498 to 0\.04398.*levels=14",
        ),
        ({"density": 0.5, "levels": 900}, "900 levels from 1000 to 500 weights prune nothing"),
        ({"density": 0.0001}, "not one weight"),
    ],
)
def test_densities_that_levels_cannot_meet_are_named(hyper, says):
    with pytest.raises(ValueError, match=says):
        IMP(**hyper).counts(1000, 1000)


def test_a_source_that_is_too_small_is_named():
    with pytest.raises(ValueError, match=r"density 0\.5 asks for 500 weights, but the source holds only 400"):
        IMP(density=0.5).counts(1000, 400)


@pytest.mark.parametrize(
    ("kind", "hyper", "says"),
    [
        (IMP, {"levels": 0}, "levels must be an int >= 1"),
        (IMP, {"prune_fraction": 1.5}, "prune_fraction must be in"),
        (IMP, {"prune_fraction": 0.2, "levels": 3}, "one follows from the other"),
        (IMP, {"rewind": "weight"}, "unknown rewind 'weight'.*did you mean 'weights'"),
        (IMP, {"rewind": "lr", "rewind_step": 5}, "keeps the weights, so rewind_step=5 means nothing"),
        (IMP, {"rewind_step": -1}, "rewind_step must be an int >= 0"),
        (IMP, {"rewind_step": 0.5}, "rewind_step must be an int >= 0"),
        (IMP, {"criterion": "obs"}, "unknown criterion 'obs'.*'obd'"),
        (IMP, {"distribution": "globl"}, "unknown distribution"),
        (EarlyBird, {"window": 0}, "window must be an int >= 1"),
        (EarlyBird, {"tolerance": 1.0}, "tolerance must be in"),
    ],
)
def test_bad_values_are_named(kind, hyper, says):
    with pytest.raises(ValueError, match=says):
        kind(density=0.1, **hyper)
