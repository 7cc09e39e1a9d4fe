import pytest
import torch
from torch import nn

import startsparse as ss
from startsparse.training import models

IMAGES = [name for name in models.names() if name not in ("gcn", "gpt")]
SMALL = {"lenet5": (1, 12, 12)}  # the smallest image of a model, where 8x8 is below it


def weights(name, **options):
    """Number of weight tensors and of weights, no memory used."""
    with torch.device("meta"):
        sizes = [p.numel() for p in models.make(name, **options).parameters() if p.dim() > 1]
    return len(sizes), sum(sizes)


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize(("shape", "classes"), [((1, 8, 8), 10), ((3, 32, 32), 7)])
def test_every_model_fits_the_data(name, shape, classes):
    shape = SMALL.get(name, shape) if shape == (1, 8, 8) else shape
    model = models.make(name, input_shape=shape, classes=classes).eval()
    with torch.no_grad():
        assert model(torch.zeros(2, *shape)).shape == (2, classes)


SIZES = {
    # weights of convolutions and linear layers, first and last included
    "resnet20": [({"shortcut": "A"}, 20, 268_336), ({"shortcut": "B"}, 22, 270_896)],
    "resnet18": [({}, 21, 11_164_352)],
    "resnet50": [
        ({"stem": "imagenet"}, 54, 25_502_912),
        ({"stem": "cifar", "classes": 100, "input_shape": (3, 32, 32)}, 54, 23_652_032),
    ],
    "vgg16-bn": [({}, 14, 14_715_584)],
    "lenet-300-100": [({}, 3, 266_200)],
}


@pytest.mark.parametrize(
    ("name", "options", "tensors", "count"), [(name, *row) for name, rows in SIZES.items() for row in rows]
)
def test_counts(name, options, tensors, count):
    assert weights(name, **options) == (tensors, count)


@pytest.mark.parametrize(
    ("name", "classes", "sparsity"), [("resnet56", 10, 0.4994), ("resnet56", 100, 0.4960), ("resnet20", 10, 0.4980)]
)  # fmt: skip
def test_half_of_all_but_the_first_and_last_layer(name, classes, sparsity):
    """The overall sparsity of a net whose inner layers are pruned by half is known for these nets."""
    _, total = weights(name, classes=classes)
    assert round(0.5 * (total - 9 * 3 * 16 - 64 * classes) / total, 4) == sparsity


def test_deeper_nets_are_made_of_the_same_blocks():
    """A block of each stage more: 2 * 9 * (16^2 + 32^2 + 64^2) weights and 6 tensors."""
    _, base = weights("resnet20")
    for depth in (32, 56, 110):
        more = (depth - 20) // 6
        assert weights(f"resnet{depth}") == (20 + 6 * more, base + more * 18 * (16**2 + 32**2 + 64**2))
    _, vgg16 = weights("vgg16-bn")
    assert weights("vgg19-bn") == (17, vgg16 + 9 * (256**2 + 2 * 512**2))


def test_depthwise_convolutions_and_strides():
    large = models.make("mobilenet-v2", stem="imagenet", input_shape=(3, 64, 64)).eval()
    small = models.make("mobilenet-v2", input_shape=(3, 32, 32)).eval()
    depthwise = [m for m in small.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    assert all(".depthwise." in name for name, m in small.named_modules() if m in depthwise)
    assert len(depthwise) == 17 and all(m.weight.shape[1] == 1 for m in depthwise)
    with torch.no_grad():
        assert large.blocks(large.stem(torch.zeros(1, 3, 64, 64))).shape[2:] == (2, 2)  # 1/32 of the side
        assert small.blocks(small.stem(torch.zeros(1, 3, 32, 32))).shape[2:] == (4, 4)  # 1/8
    assert (
        models.make("mobilenet-v2", width=0.35).stem[0].out_channels == 16
    )  # 11.2, to a multiple of 8 near it


def test_stems():
    stem = {
        side: models.make("resnet18", input_shape=(3, side, side)).conv1.kernel_size[0] for side in (32, 64, 65, 224)
    }  # fmt: skip
    assert stem == {32: 3, 64: 3, 65: 7, 224: 7}
    assert models.make("resnet18", stem="imagenet").conv1.stride == (2, 2)


def test_every_weight_of_a_transformer_is_a_linear_layer():
    for name, tables in (("gpt", 2), ("vit-tiny", 1)):  # besides embeddings and positions
        model = models.make(name)
        found = ss.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), ss.Static(density=0.5)).masks
        large = [key for key, p in model.named_parameters() if p.dim() > 1]
        assert len(large) - len(found) == tables
        assert all(type(model.get_submodule(key.removesuffix(".weight"))) is nn.Linear for key in found)


def test_a_character_sees_only_those_before_it():
    model = models.make("gpt", width=16, depth=2, heads=2, input_shape=(8,), classes=5).eval()
    one, other = torch.zeros(1, 8, dtype=torch.long), torch.zeros(1, 8, dtype=torch.long)
    other[0, 5:] = 3
    with torch.no_grad():
        same = torch.isclose(model(one), model(other), atol=1e-6).all(-1)[0]
    assert same.tolist() == [True] * 5 + [False] * 3


def test_a_patch_is_one_square_of_the_image():
    model = models.make("vit-tiny", patch=4, width=8, depth=1, heads=1, input_shape=(2, 8, 8))
    seen = []
    _ = model.embed.register_forward_hook(lambda module, given, output: seen.append(given[0]))
    image = torch.arange(128.0).view(1, 2, 8, 8)
    model(image)
    assert seen[0].shape == (1, 4, 32)
    assert torch.equal(seen[0][0, 1], image[0, :, :4, 4:].flatten())


def test_mlp_widths_and_batch_norm():
    model = models.make("mlp", widths=[12, 8, 4], batch_norm=True)
    assert [tuple(m.weight.shape) for m in model if isinstance(m, nn.Linear)] == [
        (12, 784),
        (8, 12),
        (4, 8),
        (10, 4),
    ]
    assert sum(isinstance(m, nn.BatchNorm1d) for m in model) == 3
    assert models.make("mlp", input_shape=(5,), classes=2)(torch.zeros(3, 5)).shape == (3, 2)


def test_option_a_pads_with_zeros():
    shortcut = models.make("resnet20", shortcut="A").stage2[0].shortcut
    x = torch.randn(1, 16, 4, 4)
    y = shortcut(x)
    assert y.shape == (1, 32, 2, 2)
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2]) and not y[:, :8].any() and not y[:, 24:].any()


def test_width_multiplies_channels():
    assert models.make("resnet20", width=0.5).conv1.out_channels == 8
    assert models.make("resnet20", width=2).fc.in_features == 128
    assert models.make("vgg16-bn", width=0.25).fc.in_features == 128


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("resnet20", {"shortcut": "C"}, "shortcut is 'A' or 'B', got 'C'"),
        ("resnet20", {"width": 0.01}, "leaves no channel"),
        ("resnet20", {"input_shape": (64,)}, r"resnet20 takes images .*, got input_shape \(64,\)"),
        ("resnet18", {"stem": "tiny"}, "stem is 'auto', 'cifar' or 'imagenet', got 'tiny'"),
        ("vgg16-bn", {"width": 0.001}, "leaves no channel in stage 1"),
        ("mobilenet-v2", {"dropout": 1.0}, "dropout is a share"),
        ("mobilenet-v2", {"width": 0.0}, "width is positive"),
        ("lenet5", {"input_shape": (1, 8, 8)}, "lenet5 needs images of 12x12 or more, got 8x8"),
        ("vit-tiny", {"patch": 5}, "patch 5 does not divide images of 32x32"),
        ("vit-tiny", {"heads": 5}, "width 96 is no multiple of heads 5"),
        ("gpt", {"input_shape": (3, 32, 32)}, r"gpt takes text \(context,\), got input_shape \(3, 32, 32\)"),
        ("gpt", {"depth": 0}, "are positive"),
        ("mlp", {"widths": [0]}, "widths are positive"),
        ("small-cnn", {"widths": []}, "one positive number or more"),
        ("lenet", {}, "unknown model 'lenet'"),
        ("resnet-20", {}, "did you mean 'resnet20'"),
        ("timm:", {}, "timm: is followed by a name"),
    ],
)
def test_bad_options(name, options, says):
    with pytest.raises(ValueError, match=says):
        models.make(name, **options)
