"""How alike masks are: counts by hand, and chance against draws."""

from __future__ import annotations

import math

import pytest
import torch

import startsparse as ss
from startsparse.searching import plot_overlaps


def drawn(seed, counts, size=60):
    generator = torch.Generator().manual_seed(seed)
    masks = {}
    for name, count in counts.items():
        masks[name] = torch.zeros(size, dtype=torch.bool)
        masks[name][torch.randperm(size, generator=generator)[:count]] = True
    return masks


def test_by_hand():
    """Two layers of different density: chance is not the density of the whole."""
    a = {"x": torch.tensor([1, 1, 0, 0]).bool(), "y": torch.tensor([1, 1, 1, 0]).bool()}
    b = {"x": torch.tensor([1, 0, 1, 0]).bool(), "y": torch.tensor([0, 1, 1, 1]).bool()}
    found = ss.overlap(a, b)
    assert found.overlap == 3 / 5
    assert found.chance == (2 * 2 / 4 + 3 * 3 / 4) / 5 == 0.65
    assert found.normalized == pytest.approx((0.6 - 0.65) / 0.35)
    assert found.jaccard == 3 / 7
    assert found.layer("y").overlap == 2 / 3
    assert "all" in str(found)
    assert "0.143" in str(found) or "-0.143" in str(found)


def test_chance_is_that_of_draws():
    counts = {"x": 30, "y": 6}
    fixed = drawn(0, counts)
    overlaps = [ss.overlap(fixed, drawn(seed, counts)) for seed in range(1, 401)]
    shared = torch.tensor([found.overlap for found in overlaps])
    assert float(shared.mean()) == pytest.approx(overlaps[0].chance, abs=4 * overlaps[0].deviation / 20)
    assert float(shared.std()) == pytest.approx(overlaps[0].deviation, rel=0.12)
    z = torch.tensor([found.deviations for found in overlaps])
    assert abs(float(z.mean())) < 0.2


def test_ends():
    masks = drawn(0, {"x": 30, "y": 6})
    same = ss.overlap(masks, masks)
    assert (same.overlap, same.jaccard, same.normalized) == (1.0, 1.0, 1.0)
    other = {name: ~mask for name, mask in masks.items()}
    assert ss.overlap(masks, other).jaccard == 0
    nested = ss.overlap(drawn(0, {"x": 10}), drawn(0, {"x": 30}))
    assert nested.overlap == 1.0
    full = {"x": torch.ones(4, dtype=torch.bool)}
    assert math.isnan(ss.overlap(full, full).normalized)


def test_chance_inside_a_source():
    """Masks drawn in half of the positions share more than anywhere; above chance they share nothing."""
    source = drawn(9, {"x": 30})
    inner = source["x"].nonzero().squeeze(1)
    a, b = ({"x": torch.zeros(60, dtype=torch.bool)} for _ in range(2))
    a["x"][inner[:10]] = True
    b["x"][inner[5:15]] = True
    assert ss.overlap(a, b).chance == pytest.approx(10 / 60)
    assert ss.overlap(a, b, inside=source).chance == pytest.approx(10 / 30)
    with pytest.raises(ValueError, match="x: a mask leaves the source"):
        ss.overlap(a, {"x": ~b["x"]}, inside=source)


def test_bad_input():
    with pytest.raises(ValueError, match=r"\['y'\] are on one side only"):
        ss.overlap(drawn(0, {"x": 3}), drawn(0, {"x": 3, "y": 3}))
    with pytest.raises(ValueError, match=r"x: masks of shapes \(60,\) and \(50,\)"):
        ss.overlap(drawn(0, {"x": 3}), drawn(0, {"x": 3}, size=50))
    with pytest.raises(ValueError, match=r"x: a mask is torch.float32, it must be torch.bool"):
        ss.overlap(drawn(0, {"x": 3}), {"x": drawn(0, {"x": 3})["x"].float()})
    with pytest.raises(ValueError, match="no layer 'z'"):
        ss.overlap(drawn(0, {"x": 3}), drawn(0, {"x": 3})).layer("z")


def test_plot(tmp_path):
    pytest.importorskip("matplotlib")
    counts = {"x": 30, "y": 6}
    found = {f"seed {seed}": ss.overlap(drawn(0, counts), drawn(seed, counts)) for seed in range(3)}
    file = tmp_path / "overlaps.svg"
    plot_overlaps(found, str(file))
    assert file.read_text().lstrip().startswith("<?xml")
    with pytest.raises(ValueError, match="of the same layers"):
        plot_overlaps(found | {"other": ss.overlap(drawn(0, {"z": 3}), drawn(1, {"z": 3}))}, str(file))
