"""Numbers of other libraries are taken for what they are, and kept as Python's own."""

import io
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch

import startsparse as ss
from startsparse.scalars import as_plain

NUMBERS = [
    (np.float32(0.25), 0.25),
    (np.float64(0.1), 0.1),
    (np.float16(0.5), 0.5),
    (np.int64(7), 7),
    (np.uint8(7), 7),
    (np.array(0.25), 0.25),
    (torch.tensor(0.25), 0.25),
    (torch.tensor(7), 7),
    (np.bool_(True), True),
    (torch.tensor(True), True),
    (Fraction(1, 4), 0.25),
    (Decimal("0.25"), 0.25),
    (3, 3),
    (True, True),
    ("0.1", "0.1"),
    (None, None),
]


@pytest.mark.parametrize(("value", "wanted"), NUMBERS)
def test_a_number_becomes_pythons_own(value, wanted):
    plain = as_plain(value)
    assert plain == wanted and type(plain) is type(wanted)


def test_what_is_no_number_stays():
    several = np.array([0.1, 0.2])
    assert as_plain(several) is several
    assert as_plain(np.array([0.1])).shape == (1,)
    assert as_plain(1j) == 1j


@pytest.mark.parametrize("density", [np.float32(0.25), np.float64(0.25), np.array(0.25), torch.tensor(0.25)])
def test_hyper_parameters_may_be_of_any_library(density):
    model = torch.nn.Sequential(torch.nn.Linear(20, 30), torch.nn.Linear(30, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = ss.RigL(
        density=density,
        distribution={"0.weight": density, "*": "erk"},
        update_interval=np.int64(2),
        update_end=np.float32(0.5),
        drop_fraction=np.float32(0.5),
        seed=np.int32(3),
        skip_step_on_update=np.bool_(False),
    )
    source = ss.RandomSource(density=np.float32(0.5), seed=np.int64(1))
    assert ss.plan(model, method, source=source, total_steps=8).num_final == 180
    sparse = ss.attach(model, optimizer, method, source=source, total_steps=np.int64(8), power=np.float32(1))
    assert sparse.target_count == 180
    kept = io.BytesIO()
    torch.save(sparse.state_dict(), kept)
    state = torch.load(io.BytesIO(kept.getvalue()), weights_only=True)
    assert all(type(value) in (bool, int, float, str, dict) for value in state["describe"]["method"].values())
    sparse.load_state_dict(state)


def test_scaled_densities_are_plain_and_no_less_than_zero():
    found = ss.Scaled({"a": np.float32(0.5), "b": torch.tensor(2)}).base
    assert found == {"a": 0.5, "b": 2} and {type(value) for value in found.values()} == {int, float}
    for bad in (-1, float("nan"), float("inf"), "0.3", True, None):
        with pytest.raises(ValueError, match=r"Scaled: the base density of 'b' must be a number >= 0, got"):
            ss.Scaled({"a": 1, "b": bad})


def test_searches_and_budgets_take_them_too():
    assert ss.Jackpot(density=np.float32(0.5)).hyper_parameters()["density"] == 0.5
    assert ss.distributions.allocate("erk", {"a": (4, 4)}, np.float32(0.5)) == {"a": 8}


@pytest.mark.parametrize(
    "density", [True, np.bool_(True), "0.1", float("nan"), np.float32("nan"), np.array([0.1, 0.2]), 1j]
)
@pytest.mark.parametrize("of", [ss.RigL, ss.Jackpot, ss.RandomSource])
def test_no_density_at_all(of, density):
    with pytest.raises(ValueError, match=r"density must be in \(0, 1\], got"):
        of(density=density)
    with pytest.raises(ValueError, match=r"density must be in \(0, 1\], got"):
        ss.distributions.allocate("erk", {"a": (4, 4)}, density)
