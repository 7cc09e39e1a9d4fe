"""Every model, small: made sparse to the weight, trained a step either way, saved and loaded."""

import copy

import pytest
import torch

import startsparse as ss
from startsparse.training import loop, models

SMALL = {
    "gcn": {"widths": [32], "input_shape": (5, 5, 20)},
    "gpt": {"width": 16, "depth": 2, "heads": 2, "input_shape": (8,), "classes": 11},
    "lenet-300-100": {"input_shape": (1, 8, 8)},
    "lenet5": {"input_shape": (1, 12, 12)},
    "mlp": {"widths": [32, 16], "input_shape": (20,)},
    "mobilenet-v2": {"width": 0.25, "dropout": 0.0, "input_shape": (3, 8, 8)},
    "resnet110": {"width": 0.25, "input_shape": (3, 8, 8)},
    "resnet18": {"width": 0.125, "input_shape": (3, 8, 8)},
    "resnet20": {"width": 0.5, "shortcut": "B", "input_shape": (3, 8, 8)},
    "resnet32": {"width": 0.5, "input_shape": (3, 8, 8)},
    "resnet50": {"width": 0.125, "input_shape": (3, 8, 8)},
    "resnet56": {"width": 0.25, "input_shape": (3, 8, 8)},
    "small-cnn": {"input_shape": (3, 8, 8)},
    "vgg16-bn": {"width": 0.125, "input_shape": (3, 8, 8)},
    "vgg19-bn": {"width": 0.125, "input_shape": (3, 8, 8)},
    "vit-tiny": {"width": 16, "depth": 2, "heads": 2, "input_shape": (3, 8, 8)},
}
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*left dense"),  # embeddings and positions
    pytest.mark.filterwarnings("ignore:.*(no live weights|none of its|keeps no|empty|dense under)"),
]


def made(name):
    torch.manual_seed(0)
    model = models.make(name, **SMALL[name])
    shape, classes = SMALL[name].get("input_shape"), SMALL[name].get("classes", 10)
    if name == "gpt":
        tokens = torch.randint(classes, (4, *shape))
        return model, tokens, tokens.roll(-1, 1)
    return model, torch.randn(4, *shape), torch.randint(classes, (4,))


def step(model, optimizer, inputs, labels):
    loss = loop.loss_of(model(inputs), labels)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def test_none_is_missed():
    assert sorted(SMALL) == models.names()


@pytest.mark.parametrize("name", models.names())
def test_one_percent_to_the_weight_and_back_from_a_file(name, tmp_path):
    model, inputs, labels = made(name)
    total = sum(layer.parameter.numel() for layer in ss.layers.find(model).values())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparse = ss.attach(model, optimizer, ss.Static(density=0.01, distribution="erk"))
    for _ in range(2):
        _ = step(model, optimizer, inputs, labels)
    assert sparse.target_count == round(0.01 * total)
    assert sum(int(mask.sum()) for mask in sparse.masks.values()) == sparse.target_count
    parameters = dict(model.named_parameters())
    assert all(not parameters[key][~mask].any() for key, mask in sparse.masks.items())
    ss.save(sparse, tmp_path / "net.sparse.safetensors")
    again = ss.load(tmp_path / "net.sparse.safetensors", made(name)[0])
    with torch.no_grad():
        assert torch.equal(again.eval()(inputs), model.eval()(inputs))


@pytest.mark.parametrize("name", models.names())
def test_a_step_is_the_same_under_sparse_execution(name):
    model, inputs, labels = made(name)
    model.eval()  # batch statistics of four examples would blow rounding up
    twin = copy.deepcopy(model)
    losses, states = [], []
    for net, execution in ((model, "masked"), (twin, "sparse")):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
        sparse = ss.attach(net, optimizer, ss.Static(density=0.1), execution=execution)
        losses.append([step(net, optimizer, inputs, labels) for _ in range(2)])
        states.append(sparse.dense_state_dict())
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert states[0].keys() == states[1].keys()
    for key, value in states[0].items():
        if value.is_floating_point():
            torch.testing.assert_close(
                value, states[1][key], rtol=1e-2, atol=1e-3, msg=lambda m, key=key: f"{key}: {m}"
            )
