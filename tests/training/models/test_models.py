import pytest
import torch
from torch import nn

from startsparse.training import models


@pytest.mark.parametrize("name", models.names())
@pytest.mark.parametrize(("shape", "classes"), [((1, 8, 8), 10), ((3, 32, 32), 7)])
def test_every_model_fits_the_data(name, shape, classes):
    outputs = models.make(name, input_shape=shape, classes=classes)(torch.zeros(2, *shape))
    assert outputs.shape == (2, classes)
    outputs.sum().backward()


def test_mlp_widths_and_batch_norm():
    model = models.make("mlp", widths=[12, 8, 4], batch_norm=True)
    assert [tuple(m.weight.shape) for m in model if isinstance(m, nn.Linear)] == [
        (12, 784),
        (8, 12),
        (4, 8),
        (10, 4),
    ]
    assert sum(isinstance(m, nn.BatchNorm1d) for m in model) == 3


@pytest.mark.parametrize(("shortcut", "tensors", "weights"), [("A", 20, 268_336), ("B", 22, 270_896)])
def test_resnet20_counts(shortcut, tensors, weights):
    sizes = [p.numel() for p in models.make("resnet20", shortcut=shortcut).parameters() if p.dim() > 1]
    assert (len(sizes), sum(sizes)) == (tensors, weights)


def test_option_a_pads_with_zeros():
    shortcut = models.make("resnet20", shortcut="A").stage2[0].shortcut
    x = torch.randn(1, 16, 4, 4)
    y = shortcut(x)
    assert y.shape == (1, 32, 2, 2)
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2]) and not y[:, :8].any() and not y[:, 24:].any()


def test_width_multiplies_channels():
    assert models.make("resnet20", width=0.5).conv1.out_channels == 8
    assert models.make("resnet20", width=2).fc.in_features == 128


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("resnet20", {"shortcut": "C"}, "shortcut is 'A' or 'B', got 'C'"),
        ("resnet20", {"width": 0.01}, "leaves no channel"),
        ("mlp", {"widths": [0]}, "widths are positive"),
        ("small-cnn", {"widths": []}, "one positive number or more"),
        ("lenet", {}, "unknown model 'lenet'"),
        ("resnet-20", {}, "did you mean 'resnet20'"),
    ],
)
def test_bad_options(name, options, says):
    with pytest.raises(ValueError, match=says):
        models.make(name, **options)
