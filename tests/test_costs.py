from __future__ import annotations

import pytest
import torch
from torch import nn

from startsparse.costs import inference_flops, training_bytes, training_flops, uses_per_sample
from startsparse.layers import find


def uses(model, example, layers=None):
    return uses_per_sample(model, find(model, layers), example)


def test_a_perceptron():
    model = nn.Sequential(nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 3))
    assert uses(model, torch.zeros(4, 7)) == ({"0.weight": 1.0, "2.weight": 1.0}, 4)


@pytest.mark.parametrize(
    ("module", "shape", "expected"),
    [
        (nn.Conv2d(3, 8, 3, padding=1), (2, 3, 6, 5), 30),
        (nn.Conv2d(3, 8, 3), (2, 3, 6, 5), 12),
        (nn.Conv2d(3, 8, 3, stride=2, padding=1), (2, 3, 6, 6), 9),
        (nn.Conv2d(6, 8, 3, groups=2, dilation=2), (2, 6, 7, 7), 9),
        (nn.Conv2d(6, 6, 3, groups=6, padding=1), (2, 6, 4, 4), 16),
        (nn.Conv1d(4, 6, 2, stride=3), (2, 4, 11), 4),
        (nn.Conv3d(2, 3, (1, 2, 3)), (2, 2, 4, 4, 4), 4 * 3 * 2),
        (nn.ConvTranspose2d(4, 6, 3, stride=2), (2, 4, 5, 3), 15),
        (nn.ConvTranspose2d(4, 6, 2, groups=2), (2, 4, 5, 3), 15),
        (nn.ConvTranspose1d(4, 6, 3, stride=4, output_padding=2), (2, 4, 7), 7),
        (nn.Linear(4, 6), (2, 5, 3, 4), 15),
    ],
    ids=str,
)
def test_every_kind_of_layer(module, shape, expected):
    assert uses(module, torch.zeros(shape)) == ({"weight": expected}, 2)


def multiply_adds(module, example):
    """Counted by autograd: each use of a weight adds one where inputs and output gradients are all ones."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    module.double()(example.double()).sum().backward()
    return float(module.weight.grad.sum()) / module.weight.numel() / len(example)


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Conv2d(6, 8, 3, stride=2, groups=2), (2, 6, 9, 7)),
        (nn.Conv1d(4, 4, 5, groups=4), (3, 4, 20)),
        (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (2, 4, 5, 3)),
        (nn.ConvTranspose3d(2, 3, 2), (1, 2, 3, 4, 5)),
        (nn.Linear(4, 6), (2, 5, 4)),
    ],
    ids=str,
)
def test_uses_are_what_autograd_sums_up(module, shape):
    example = torch.ones(shape)
    expected = multiply_adds(module, example)
    assert uses(module.float(), example)[0]["weight"] == pytest.approx(expected)


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.unused = nn.Linear(4, 4)
        self.drop = nn.Dropout(0.5)
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x, scale=1.0, times=2):
        for _ in range(times):
            x = self.norm(self.drop(self.fc(x))) * scale
        return x


def test_a_layer_that_is_used_twice_counts_twice_and_an_unused_one_not():
    assert uses(Shared(), torch.zeros(3, 4)) == ({"fc.weight": 2.0, "unused.weight": 0.0}, 3)


def test_examples_are_a_tensor_a_tuple_or_a_dict():
    x = torch.zeros(3, 4)
    for example in ((x,), [x, 0.5], (x, 0.5, 2), {"x": x, "times": 2}, {"scale": 2.0, "x": x}):
        assert uses(Shared(), example) == ({"fc.weight": 2.0, "unused.weight": 0.0}, 3)


def test_counting_leaves_no_trace():
    model = Shared()
    _ = model.unused.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = {name: module.training for name, module in model.named_modules()}
    random_state = torch.get_rng_state()
    _ = uses(model, torch.randn(3, 4))
    torch.set_rng_state(random_state)
    _ = uses(model, torch.ones(3, 4))
    assert torch.equal(torch.get_rng_state(), random_state)
    assert modes == {name: module.training for name, module in model.named_modules()}
    assert modes[""] and not modes["unused"]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(not module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_forward_pass_that_fails_leaves_no_trace_either():
    model = Shared()
    with pytest.raises(ValueError, match="does not take example_input"):
        _ = uses(model, torch.zeros(3, 5))
    assert model.training and model.drop.training
    assert all(not module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ("x", "example_input must be a batch of one or more inputs, .* got 'x'"),
        ({}, r"example_input must be a batch .* got \{\}"),
        (torch.zeros(0, 7), r"got a tensor of shape \(0, 7\)"),
        (torch.tensor(1.0), r"got a tensor of shape \(\)"),
        (torch.zeros(4, 6), "the model does not take example_input: RuntimeError: .*mat1 and mat2"),
        ({"y": torch.zeros(4, 7)}, "the model does not take example_input: TypeError: .* 'y'"),
    ],
)
def test_an_example_that_is_none_is_refused_in_words(example, message):
    with pytest.raises(ValueError, match=message):
        uses(nn.Sequential(nn.Linear(7, 5)), example)


def test_an_embedding_multiplies_nothing():
    model = nn.Sequential(nn.Embedding(11, 4), nn.Linear(4, 2))
    found = uses(model, torch.zeros(3, 5, dtype=torch.long), "*")
    assert found == ({"0.weight": 0.0, "1.weight": 5.0}, 3)


class Attention(nn.Module):
    def __init__(self, keywords):
        super().__init__()
        self.attn = nn.MultiheadAttention(8, 2, batch_first=True)
        self.keywords = keywords

    def forward(self, x):
        if self.keywords:
            return self.attn(query=x, key=x, value=x)[0]
        return self.attn(x, x, x)[0]


def test_attention_projects_every_token():
    assert uses(Attention(False), torch.zeros(2, 5, 8))[0]["attn.in_proj_weight"] == 5.0


def test_the_output_projection_of_attention_counts():
    assert uses(Attention(False), torch.zeros(2, 5, 8))[0]["attn.out_proj.weight"] == 5.0


def test_modules_called_by_keywords():
    class Keyword(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(8, 4)

        def forward(self, x):
            return self.fc(input=x)

    assert uses(Keyword(), torch.zeros(2, 8)) == ({"fc.weight": 1.0}, 2)
    assert uses(Attention(True), torch.zeros(2, 5, 8))[0]["attn.in_proj_weight"] == 5.0


def test_both_uses_of_a_tied_weight_count():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    assert uses(model, torch.zeros(2, 4)) == ({"0.weight": 2.0}, 2)


# -- figures by hand ---------------------------------------------------------------------------------------------


def test_flops_by_hand():
    used = {"conv": 16.0, "fc": 1.0}
    assert inference_flops({"conv": 10, "fc": 50}, used) == 2 * (160 + 50)
    sizes = {"conv": 100, "fc": 500}
    assert training_flops({"conv": 10, "fc": 50}, sizes, used, 0.0) == 3 * 420
    assert training_flops({"conv": 10, "fc": 50}, sizes, used, 1.0) == 2 * 420 + 4200
    assert training_flops(sizes, sizes, used, 0.5) == 3 * 4200


@pytest.mark.parametrize("interval", [1, 10, 100])
def test_flops_of_the_paper_of_rigl(interval):
    """Evci et al. 2020, appendix: (3 f_s T + 2 f_s + f_d) / (T + 1), one dense gradient every T + 1 steps."""
    sparse, dense = 2 * 30.0, 2 * 600.0
    found = training_flops({"w": 30}, {"w": 600}, {"w": 1.0}, 1 / (interval + 1))
    assert found == pytest.approx((3 * sparse * interval + 2 * sparse + dense) / (interval + 1))


def test_bytes_of_training_by_hand():
    """Per weight: value, gradient, states and bits of the mask at the value's size; mask and source a byte each."""
    assert training_bytes((10, 20), 4, 0, False) == 200 * (4 + 4 + 4 + 1)
    assert training_bytes((10, 20), 4, 2, True) == 200 * (4 * 5 + 2)
    assert training_bytes((2, 3, 4), 2, 1, False) == 24 * (2 * 4 + 1)
