"""Growth candidates: exactly the largest dense gradients, without the dense gradient."""

from __future__ import annotations

import pytest
import torch

from startsparse.kernels import Pattern, dense_gradient, grow_candidates


@pytest.mark.parametrize("block", [1, 700, 10**6])
def test_candidates_are_the_largest_inactive_gradients(block):
    mask = torch.rand(60, 50) < 0.2
    pattern = Pattern.from_mask(mask)
    x, dy = torch.randn(3, 3, 50), torch.randn(3, 3, 60)
    gradient = dy.view(9, 60).t() @ x.view(9, 50)
    score = gradient.abs().masked_fill(mask, -1).flatten()
    positions, values = grow_candidates(pattern, x, dy, 100, block=block)
    order = torch.argsort(score, descending=True)[:100]
    assert torch.equal(positions, order)
    torch.testing.assert_close(values, gradient.flatten()[order])


def test_candidates_inside_a_source():
    mask = torch.rand(20, 30) < 0.2
    pattern = Pattern.from_mask(mask)
    x, dy = torch.randn(9, 30), torch.randn(9, 20)
    allowed = torch.arange(0, 600, 3)
    score = (dy.t() @ x).abs().masked_fill(mask, -1).flatten()
    inside = torch.full_like(score, -1).index_copy(0, allowed, score[allowed])
    positions, _ = grow_candidates(pattern, x, dy, 50, allowed=allowed, block=200)
    assert torch.equal(positions, torch.argsort(inside, descending=True)[:50])


def test_ties_go_to_the_lower_position_and_nan_counts_as_zero():
    pattern = Pattern.build(torch.tensor([1]), 2, 3)
    x = torch.tensor([[1.0, 1.0, float("nan")]])
    dy = torch.tensor([[1.0, -1.0]])
    for block in (1, 100):
        positions, values = grow_candidates(pattern, x, dy, 9, block=block)
        assert positions.tolist() == [0, 3, 4, 2, 5] and values[:3].tolist() == [1, -1, -1]
        assert grow_candidates(pattern, x, dy, 2, block=block)[0].tolist() == [0, 3]
    assert grow_candidates(pattern, x, dy, 0)[0].numel() == 0


@pytest.mark.parametrize("groups", [1, 2])
def test_dense_gradient_of_a_convolution(groups):
    weight = torch.randn(8, 6 // groups, 3, 2, requires_grad=True)
    x, options = (
        torch.randn(4, 6, 9, 9),
        {"stride": (2, 1), "padding": (1, 0), "dilation": (1, 2), "groups": groups},
    )
    y = torch.nn.functional.conv2d(x, weight, **options)
    dy = torch.randn(y.shape)
    y.backward(dy)
    for block in (30, 1000):
        blocks = list(dense_gradient(x, dy, kernel_size=(3, 2), block=block, **options))
        assert [row for row, _ in blocks] == sorted(row for row, _ in blocks)
        found = torch.cat([gradient for _, gradient in blocks]).view_as(weight)
        torch.testing.assert_close(found, weight.grad, rtol=1e-4, atol=1e-4)
