from __future__ import annotations

import pytest
import torch

from startsparse.criteria import gradient, magnitude, saliency

W = torch.tensor([[-2.0, 0.5], [0.0, 3.0]])
G = torch.tensor([[0.5, -4.0], [7.0, -0.25]])


def test_scores_by_hand():
    assert magnitude(W).tolist() == [[2.0, 0.5], [0.0, 3.0]]
    assert gradient(G).tolist() == [[0.5, 4.0], [7.0, 0.25]]
    assert saliency(W, G).tolist() == [[1.0, 2.0], [0.0, 0.75]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_ranked_in_float32(dtype):
    """Products that are equal, zero or infinite in half precision still rank."""
    w = torch.tensor([1e-4, 2e-4, 6e4], dtype=dtype)
    g = torch.tensor([1e-4, 1e-4, 6e4], dtype=dtype)
    found = saliency(w, g)
    assert found.dtype == magnitude(w).dtype == gradient(g).dtype == torch.float32
    assert found.isfinite().all()
    assert found[0] < found[1] < found[2]
    assert torch.equal(found, w.float() * g.float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_full_precision_stays(dtype):
    assert saliency(W.to(dtype), G.to(dtype)).dtype == dtype


def test_nothing_is_written_to_and_nan_is_passed_on():
    w, g = W.clone(), G.clone()
    for found in (magnitude(w), gradient(g), saliency(w, g)):
        found.add_(1)
    assert torch.equal(w, W) and torch.equal(g, G)
    assert magnitude(torch.tensor([float("nan")])).isnan().all()
