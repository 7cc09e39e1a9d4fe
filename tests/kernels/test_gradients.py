"""The dense gradient in blocks of rows is the dense gradient."""

from __future__ import annotations

import pytest
import torch

from startsparse.kernels import dense_gradient


@pytest.mark.parametrize("block", [1, 700, 10**6])
def test_dense_gradient_of_a_linear_layer(block):
    x, dy = torch.randn(3, 3, 50), torch.randn(3, 3, 60)
    blocks = list(dense_gradient(x, dy, block=block))
    assert [row for row, _ in blocks] == list(range(0, 60, max(1, block // 50)))
    found = torch.cat([gradient for _, gradient in blocks])
    torch.testing.assert_close(found, dy.view(9, 60).t() @ x.view(9, 50))
    reused = [gradient.clone() for _, gradient in dense_gradient(x, dy, block=block, reuse=True)]
    assert torch.equal(torch.cat(reused), found)


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
