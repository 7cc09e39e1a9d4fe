"""Layers against dense torch, in numbers that are not."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from startsparse import kernels

pytestmark = pytest.mark.usefixtures("each_way")


def assert_same_layer(mask, x, sparse, dense, groups=1):
    """Output and gradients of ``sparse(x, values, blob, bias)`` and ``dense(x, weight, bias)``, dense in
    float64."""
    pattern = kernels.Pattern.from_mask(mask, groups)
    weight, bias = torch.randn(mask.shape) * mask, torch.randn(mask.shape[0])
    leaves = [t.clone().requires_grad_() for t in (x, pattern.take_from(weight), bias)]
    exact = [t.double().requires_grad_() for t in (x, weight, bias)]
    y, wanted = sparse(leaves[0], leaves[1], pattern.blob, leaves[2]), dense(*exact)
    dy = torch.randn(y.shape)
    y.backward(dy)
    wanted.backward(dy.double())
    truths = wanted, exact[0].grad, pattern.take_from(exact[1].grad), exact[2].grad
    for found, truth in zip((y, *(leaf.grad for leaf in leaves)), truths, strict=True):
        torch.testing.assert_close(found, truth.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("batch", [0, 1, 15, 16, 17, 64, 100, 129])
@pytest.mark.parametrize("shape", [(33, 7), (64, 300), (1, 1), (1100, 30)])
def test_linear(batch, shape):
    mask = torch.rand(shape) < 0.3
    call = lambda x, v, p, b: kernels.sparse_linear(x, v, p, shape[0], b)
    assert_same_layer(mask, torch.randn(batch, shape[1]), call, F.linear)


@pytest.mark.parametrize("batch", [0, 1, 16, 50, 128])
@pytest.mark.parametrize("lanes", [16, 64])
def test_linear_on_the_blocked_layout(batch, lanes):
    mask = torch.rand(40, 30) < 0.2

    def call(x, v, p, b):
        y = kernels.sparse_linear(kernels.to_blocked(x, lanes), v, p, 40, b, batch=batch)
        return kernels.from_blocked(y, batch)

    assert_same_layer(mask, torch.randn(batch, 30), call, F.linear)


def test_linear_takes_leading_dimensions_and_no_bias():
    mask = torch.rand(5, 6) < 0.5
    pattern = kernels.Pattern.from_mask(mask)
    weight, x = torch.randn(5, 6) * mask, torch.randn(2, 3, 6)
    y = kernels.sparse_linear(x, pattern.take_from(weight), pattern.blob, 5)
    torch.testing.assert_close(y, F.linear(x, weight))
    torch.testing.assert_close(
        kernels.sparse_linear(x[0, 0], pattern.take_from(weight), pattern.blob, 5), y[0, 0]
    )


def test_a_layer_without_weights_gives_its_bias():
    pattern = kernels.Pattern.build(torch.empty(0, dtype=torch.int64), 3, 4)
    x, values = torch.randn(2, 4, requires_grad=True), torch.empty(0, requires_grad=True)
    y = kernels.sparse_linear(x, values, pattern.blob, 3, torch.arange(3.0))
    assert torch.equal(y, torch.arange(3.0).expand(2, 3))
    y.sum().backward()
    assert torch.equal(x.grad, torch.zeros(2, 4)) and values.grad.shape == (0,)


@given(
    batch=st.integers(0, 40),
    inputs=st.integers(1, 40),
    outputs=st.integers(1, 40),
    density=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    threads=st.integers(1, 3),
)
@settings(max_examples=30, deadline=None, derandomize=True)
def test_linear_of_any_shape(batch, inputs, outputs, density, threads):
    torch.set_num_threads(threads)
    mask = torch.rand(outputs, inputs) < density
    call = lambda x, v, p, b: kernels.sparse_linear(x, v, p, outputs, b)
    assert_same_layer(mask, torch.randn(batch, inputs), call, F.linear)


CONVOLUTIONS = {
    "3x3": {"padding": (1, 1)},
    "strided": {"stride": (2, 2), "padding": (1, 1)},
    "oblong": {"kernel": (5, 1), "stride": (1, 3), "padding": (2, 0)},
    "dilated": {"padding": (2, 1), "dilation": (2, 1)},
    "pointwise": {"kernel": (1, 1)},
    "pointwise strided": {"kernel": (1, 1), "stride": (2, 2)},
    "grouped": {"padding": (1, 1), "groups": 2},
    "depthwise": {"padding": (1, 1), "groups": 6},
    "skips pixels": {"kernel": (2, 2), "stride": (3, 3)},
    "padded beyond the image": {"kernel": (2, 3), "padding": (3, 4)},
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize(("batch", "lanes"), [(3, None), (20, None), (20, 16), (33, 32)])
def test_conv2d(name, batch, lanes):
    options = {**CONVOLUTIONS[name]}
    kernel = options.pop("kernel", (3, 3))
    groups = options.get("groups", 1)
    mask = torch.rand(12, 6 // groups, *kernel) < 0.4

    def call(x, v, p, b):
        if lanes is None:
            return kernels.sparse_conv2d(x, v, p, 12, kernel, b, **options)
        x = kernels.to_blocked(x, lanes)
        return kernels.from_blocked(
            kernels.sparse_conv2d(x, v, p, 12, kernel, b, **options, batch=batch), batch
        )

    dense = lambda x, w, b: F.conv2d(x, w, b, **options)
    assert_same_layer(mask, torch.randn(batch, 6, 9, 11), call, dense, groups)


def test_conv2d_of_an_image_too_large_for_16_bit_offsets():
    mask = torch.rand(4, 3, 3, 3) < 0.5
    call = lambda x, v, p, b: kernels.sparse_conv2d(x, v, p, 4, (3, 3), b, padding=(1, 1))
    assert_same_layer(mask, torch.randn(1, 3, 160, 150), call, lambda x, w, b: F.conv2d(x, w, b, padding=1))


def test_more_rows_and_columns_than_16_bits():
    for rows, cols in ((70_000, 2), (2, 70_000)):
        mask = torch.rand(rows, cols) < 0.05
        call = lambda x, v, p, b, rows=rows: kernels.sparse_linear(x, v, p, rows, b)
        assert_same_layer(mask, torch.randn(3, cols), call, F.linear)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_inf_reach_what_a_dense_layer_would_reach(bad):
    mask = torch.tensor([[1, 1, 0], [0, 1, 1], [0, 0, 0]], dtype=torch.bool)
    pattern = kernels.Pattern.from_mask(mask)
    x = torch.ones(18, 3, requires_grad=True)
    with torch.no_grad():
        x[17, 0] = bad
    values = torch.ones(pattern.nnz, requires_grad=True)
    y = kernels.sparse_linear(x, values, pattern.blob, 3)
    assert y[17, 0].isnan() == torch.tensor(bad).isnan() and not y[17, 0].isfinite()
    assert y[17, 1] == 2 and y[:17].isfinite().all()  # no live weight joins output 1 and input 0
    y[:, 1:].sum().backward()
    assert x.grad.isfinite().all()
    hit = ~pattern.dense(values.grad).isfinite()
    assert hit.tolist() == [[True, False, False], [False] * 3, [False] * 3]  # 0 * nan, as in dense


def test_garbage_in_lanes_without_an_item_stays_there():
    mask = torch.rand(8, 8) < 0.5
    pattern = kernels.Pattern.from_mask(mask)
    x, dy = torch.randn(20, 8), torch.randn(20, 8)
    values = pattern.take_from(torch.randn(8, 8))
    results = []
    for garbage in (0.0, float("nan")):
        blocked, blocked_dy = kernels.to_blocked(x, 16), kernels.to_blocked(dy, 16)
        blocked[1, :, 4:] = garbage
        blocked_dy[1, :, 4:] = garbage
        leaves = [t.clone().requires_grad_() for t in (blocked, values, torch.zeros(8))]
        y = kernels.sparse_linear(leaves[0], leaves[1], pattern.blob, 8, leaves[2], batch=20)
        y.backward(blocked_dy)
        results.append([kernels.from_blocked(y, 20).detach()] + [leaf.grad for leaf in leaves[1:]])
        results[-1].append(kernels.from_blocked(leaves[0].grad, 20))
    for clean, dirty in zip(*results, strict=True):
        assert torch.equal(clean, dirty)


def test_only_the_wanted_gradients_are_computed():
    mask = torch.rand(9, 8) < 0.5
    pattern = kernels.Pattern.from_mask(mask)
    for wanted in ((1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0)):
        leaves = [torch.randn(20, 8), pattern.take_from(torch.randn(9, 8)), torch.randn(9)]
        for leaf, want in zip(leaves, wanted, strict=True):
            leaf.requires_grad_(bool(want))
        kernels.sparse_linear(leaves[0], leaves[1], pattern.blob, 9, leaves[2]).sum().backward()
        assert [leaf.grad is not None for leaf in leaves] == [bool(want) for want in wanted]


def test_strides_do_not_matter():
    mask = torch.rand(6, 6, 3, 3) < 0.5
    pattern = kernels.Pattern.from_mask(mask)
    values = pattern.take_from(torch.randn(mask.shape))
    x = torch.randn(4, 6, 7, 7)
    y = kernels.sparse_conv2d(x, values, pattern.blob, 6, (3, 3))
    last = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    every_other = torch.randn(2 * pattern.nnz)
    every_other[::2] = values
    same = kernels.sparse_conv2d(last, every_other[::2], pattern.blob, 6, (3, 3))
    assert torch.equal(y, same)
    same.sum().backward()  # an expanded gradient of stride zero
    assert last.grad.shape == x.shape
