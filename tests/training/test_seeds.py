import random

import numpy as np
import torch

from startsparse.training import files, seeds


def draws():
    return random.random(), float(np.random.rand()), float(np.random.randn()), torch.rand(3).tolist()


def test_every_global_generator_comes_back_through_a_file(tmp_path):
    seeds.seed_all(5)
    random.gauss(0, 1)
    np.random.randn()  # leaves the second half of a pair behind
    files.save_tree(tmp_path / "state", seeds.capture())
    before = draws()
    assert draws() != before
    seeds.restore(files.load_tree(tmp_path / "state"))
    assert draws() == before


def test_purposes_are_streams_of_their_own():
    values = {
        seeds.derive(seed, *purpose) for seed in range(3) for purpose in [("a",), ("b",), ("a", 1), ("a", 2)]
    }
    assert len(values) == 12 and all(0 <= value < 2**63 for value in values)
