"""The operators as torch sees them, and what they refuse."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.utils.checkpoint

from startsparse import kernels

OPS = torch.ops.startsparse


def linear_arguments(batch=None, requires_grad=True):
    pattern = kernels.Pattern.from_mask(torch.rand(6, 5) < 0.5)
    x = torch.randn(3, 5) if batch is None else torch.randn(1, 5, 16)
    tensors = [t.requires_grad_(requires_grad) for t in (x, torch.randn(pattern.nnz), torch.randn(6))]
    return (*tensors, pattern.blob, 6, batch)


def conv_arguments(batch=None):
    pattern = kernels.Pattern.from_mask(torch.rand(4, 2, 3, 3) < 0.5, groups=2)
    x = torch.randn(3, 4, 5, 5) if batch is None else torch.randn(1, 4, 5, 5, 16)
    tensors = [t.requires_grad_() for t in (x, torch.randn(pattern.nnz), torch.randn(4))]
    return (*tensors, pattern.blob, 4, (3, 3), (2, 1), (1, 0), (1, 1), 2, batch)


@pytest.mark.parametrize("batch", [None, 3])
def test_opcheck_linear(batch):
    torch.library.opcheck(OPS.sparse_linear.default, linear_arguments(batch))


@pytest.mark.parametrize("batch", [None, 3])
def test_opcheck_conv2d(batch):
    torch.library.opcheck(OPS.sparse_conv2d.default, conv_arguments(batch))


def test_opcheck_layout():
    torch.library.opcheck(OPS.to_blocked.default, (torch.randn(20, 3, 2, requires_grad=True), 16))
    torch.library.opcheck(OPS.from_blocked.default, (torch.randn(2, 3, 2, 16, requires_grad=True), 20))


def test_opcheck_backward():
    tests = ("test_schema", "test_faketensor")
    x, values, _, blob, *_ = linear_arguments(requires_grad=False)
    arguments = (torch.randn(3, 6), x, values, blob, None, [True, False, True])
    torch.library.opcheck(OPS.sparse_linear_backward.default, arguments, test_utils=tests)


def test_compiled_is_eager():
    x, values, bias, blob, *_ = linear_arguments()

    def model(x, values, bias):
        hidden = kernels.sparse_linear(x, values, blob, 6, bias)
        return kernels.sparse_linear(hidden[:, :5].relu(), values, blob, 6, bias).square().sum()  # used twice

    grads = torch.autograd.grad(model(x, values, bias), (x, values, bias))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for batch in (x, torch.cat((x, x)).detach()):  # the second has another batch size
        torch.testing.assert_close(compiled(batch, values, bias), model(batch, values, bias))
    again = torch.autograd.grad(compiled(x, values, bias), (x, values, bias))
    torch.testing.assert_close(again, grads)


def test_export():
    x, values, bias, blob, *_ = linear_arguments(requires_grad=False)

    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.values = torch.nn.Parameter(values)
            self.register_buffer("pattern", blob)

        def forward(self, x):
            return kernels.sparse_linear(x, self.values, self.pattern, 6, bias)

    module = Module()
    exported = torch.export.export(module, (x,)).module()
    torch.testing.assert_close(exported(x), module(x))
    torch.testing.assert_close(copy.deepcopy(module)(x), module(x))


def test_autocast_computes_in_float32():
    _, values, bias, blob, *_ = linear_arguments()
    with torch.autocast("cpu", torch.bfloat16):
        half = torch.ones(5, 5) @ torch.ones(5, 5)
        assert half.dtype == torch.bfloat16
        y = kernels.sparse_linear(half[:3], values, blob, 6, bias)
        assert y.dtype == torch.float32
        conv = conv_arguments()
        assert OPS.sparse_conv2d(conv[0].bfloat16(), *conv[1:]).dtype == torch.float32
    y.sum().backward()
    assert values.grad.dtype == torch.float32


def test_inference_mode_and_frozen_tensors():
    x, values, bias, blob, *_ = linear_arguments()
    y = kernels.sparse_linear(x, values, blob, 6, bias)
    with torch.inference_mode():
        assert torch.equal(kernels.sparse_linear(x, values, blob, 6, bias), y)
    with torch.no_grad():
        assert not kernels.sparse_linear(x, values, blob, 6, bias).requires_grad


def test_gradcheck_by_finite_differences():
    x, values, bias, blob, *_ = linear_arguments()
    dy = torch.randn(3, 6)
    (gradient,) = torch.autograd.grad(kernels.sparse_linear(x, values, blob, 6, bias), values, dy)
    for i in range(values.numel()):
        step = torch.zeros_like(values)
        step[i] = 1.0  # the layer is linear in its values, so any step will do
        up = kernels.sparse_linear(x, values + step, blob, 6, bias)
        down = kernels.sparse_linear(x, values - step, blob, 6, bias)
        torch.testing.assert_close(((up - down) * dy).sum() / 2, gradient[i], rtol=1e-4, atol=1e-4)


def test_eager_calls_and_the_operators_agree(each_way):
    x, values, bias, blob, *_ = linear_arguments()
    direct = kernels.sparse_linear(x, values, blob, 6, bias)
    past_the_dispatcher = "SparseLayerBackward" if each_way == "node" else "_FunctionBackward"
    assert direct.grad_fn.name() == past_the_dispatcher
    through = OPS.sparse_linear(x, values, bias, blob, 6)
    assert torch.equal(direct, through)
    dy = torch.randn_like(direct)
    grads = [torch.autograd.grad(y, (x, values, bias), dy) for y in (direct, through)]
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
    with torch.device("cpu"):  # a mode that looks on
        assert torch.equal(kernels.sparse_linear(x, values, blob, 6, bias), direct)


def test_activation_checkpointing():
    x, values, bias, blob, *_ = linear_arguments()
    call = lambda x: kernels.sparse_linear(x, values, blob, 6, bias)
    y = torch.utils.checkpoint.checkpoint(call, x, use_reentrant=False)
    (dx,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(dx, torch.autograd.grad(call(x).sum(), x)[0])


def test_second_derivatives_are_refused():
    x, values, bias, blob, *_ = linear_arguments()
    y = kernels.sparse_linear(x, values, blob, 6, bias)
    (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivative"):
        dx.sum().backward()


def test_what_has_changed_since_the_forward_pass_is_refused():
    x, values, bias, blob, *_ = linear_arguments()
    y = kernels.sparse_linear(x, values, blob, 6, bias)
    with torch.no_grad():
        values.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
    y = kernels.sparse_linear(x, values, blob, 6, bias)
    x.data = x.data.half()
    with pytest.raises(ValueError, match="x must be a float32 tensor"):
        y.sum().backward()
    x.data = x.data.float()
    y = kernels.sparse_linear(x, values, blob, 6, bias)
    values.data = values.data[:-1].clone()
    with pytest.raises(ValueError, match="one per weight of the pattern"):
        y.sum().backward()


def test_the_result_is_the_same_every_time():
    pattern = kernels.Pattern.from_mask(torch.rand(200, 300) < 0.1)
    x, dy = torch.randn(130, 300), torch.randn(130, 200)
    runs = []
    for _ in range(3):
        leaves = [x.clone().requires_grad_(), torch.ones(pattern.nnz, requires_grad=True)]
        kernels.sparse_linear(*leaves, pattern.blob, 200).backward(dy)
        runs.append([leaf.grad for leaf in leaves])
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))


def replaced(**changes):
    names = ("x", "values", "bias", "pattern", "out", "batch")
    given = dict(zip(names, linear_arguments(requires_grad=False), strict=True)) | changes
    return tuple(given.values())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"x": torch.randn(3, 5, dtype=torch.float64)}, "x must be a float32"),
        ({"x": torch.randn(3, 5).to_sparse()}, "x must be a float32|layout|Sparse"),
        ({"x": torch.randn(3, 4)}, "another shape"),
        ({"x": torch.tensor(1.0)}, "x must be"),
        ({"values": torch.randn(3)}, "values must be"),
        ({"values": torch.randn(3).half()}, "values must be a float32"),
        ({"bias": torch.randn(7)}, "bias"),
        ({"out": 7}, "6 outputs"),
        ({"pattern": torch.zeros(300, dtype=torch.uint8)}, "values must be|not one that"),
        ({"pattern": torch.zeros(3, dtype=torch.uint8)}, "not one that"),
        ({"pattern": torch.zeros(300)}, "uint8"),
        ({"batch": 3}, r"\[tiles, features, lanes\]"),
        ({"x": torch.randn(1, 5, 16), "batch": 17}, "do not hold"),
        ({"x": torch.randn(1, 5, 3), "batch": 3}, "multiple of 16"),
    ],
)
def test_bad_input_is_named(changes, words):
    with pytest.raises((ValueError, RuntimeError), match=words):
        OPS.sparse_linear(*replaced(**changes))


def test_a_damaged_pattern_is_named():
    x, values, bias, blob, *_ = linear_arguments(requires_grad=False)
    for at in (0, 8, 24, 56, 100):
        damaged = blob.clone()
        damaged[at] += 1
        with pytest.raises(ValueError, match="startsparse"):
            kernels.sparse_linear(x, values, damaged, 6, bias)
    with pytest.raises(ValueError, match="startsparse"):
        kernels.sparse_linear(x, values, blob[:-64], 6, bias)


def test_meta_tensors_have_shapes_only():
    x, values, _, blob, *_ = linear_arguments(requires_grad=False)
    y = kernels.sparse_linear(x.to("meta"), values.to("meta"), blob.to("meta"), 6)
    assert y.shape == (3, 6) and y.device.type == "meta"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"groups": 1}, "groups"),
        ({"groups": 3}, "do not divide"),
        ({"stride": (0, 1)}, "no such convolution"),
        ({"kernel_size": (9, 9)}, "larger than the padded image"),
        ({"x": torch.randn(4, 5, 5)}, r"\[batch, channels, height, width\]"),
        ({"x": torch.randn(1, 6, 5, 5)}, "another shape"),
    ],
)
def test_bad_convolutions_are_named(changes, words):
    names = (
        "x",
        "values",
        "bias",
        "pattern",
        "out_channels",
        "kernel_size",
        "stride",
        "padding",
        "dilation",
        "groups",
    )
    given = dict(zip(names, conv_arguments()[:-1], strict=True)) | changes
    with pytest.raises(ValueError, match=words):
        OPS.sparse_conv2d(*given.values())
