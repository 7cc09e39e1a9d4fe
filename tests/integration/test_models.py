"""Every kind of layer, dtype and memory layout that may be sparse."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn

import startsparse as ss

from ..contract.settings import given, quick
from .invariants import check, moved, net, rigl, train


def attach(model, method=None, **options):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    return ss.attach(model, optimizer, method or rigl(), total_steps=100, **options), optimizer


CONVOLUTIONS = {
    "conv1d": (lambda: nn.Conv1d(4, 6, 3), (2, 4, 9)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3), (2, 4, 7, 7)),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2), (2, 2, 4, 4, 4)),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2), (2, 4, 7, 7)),
    "depthwise": (lambda: nn.Conv2d(4, 8, 3, groups=4), (2, 4, 7, 7)),
    "transposed1d": (lambda: nn.ConvTranspose1d(4, 6, 3), (2, 4, 9)),
    "transposed2d": (lambda: nn.ConvTranspose2d(4, 6, 3, groups=2), (2, 4, 7, 7)),
    "transposed3d": (lambda: nn.ConvTranspose3d(2, 3, 2), (2, 2, 4, 4, 4)),
}


@pytest.mark.parametrize("kind", CONVOLUTIONS)
@pytest.mark.parametrize("method", [rigl(), ss.SET(0.3, update_interval=2), ss.SNIP(0.3), ss.Magnitude(0.3)])
def test_convolutions(kind, method):
    build, shape = CONVOLUTIONS[kind]
    torch.manual_seed(0)
    model = nn.Sequential(build())
    sparse, optimizer = attach(model, method)
    train(sparse, optimizer, lambda: model(torch.randn(shape)).square().mean(), 5)
    assert sparse.target_count == round(method.density * model[0].weight.numel())
    assert sparse.report().layers[0].num_active == sparse.target_count


@pytest.mark.parametrize("kdim", [None, 5])
def test_multihead_attention(kdim):
    torch.manual_seed(0)
    model = nn.MultiheadAttention(8, 2, kdim=kdim, vdim=kdim, batch_first=True)
    sparse, optimizer = attach(model)
    names = {"in_proj_weight"} if kdim is None else {"q_proj_weight", "k_proj_weight", "v_proj_weight"}
    assert set(sparse.masks) == names | {"out_proj.weight"}
    query, key = torch.randn(3, 4, 8), torch.randn(3, 6, kdim or 8)
    train(sparse, optimizer, lambda: model(query, key, key)[0].square().mean())
    assert moved(sparse) > 0
    model.eval()
    with torch.no_grad():
        fast = model(query, key, key, need_weights=False)[0]
    torch.testing.assert_close(fast, model(query, key, key)[0])


def test_transformer_layer_and_its_fast_path():
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    sparse, optimizer = attach(model)
    assert len(sparse.masks) == 4
    x = torch.randn(2, 5, 8)
    train(sparse, optimizer, lambda: (model(x) - 1).square().mean())
    model.eval()
    with torch.no_grad():
        fast = model(x)
    torch.testing.assert_close(fast, model(x))
    assert moved(sparse) > 0


class Words(nn.Module):
    """An embedding and a classifier, tied on request."""

    def __init__(self, tied: bool, sparse: bool = False):
        super().__init__()
        self.words = nn.Embedding(20, 6, sparse=sparse)
        self.hidden = nn.Linear(6, 6)
        self.out = nn.Linear(6, 20, bias=False)
        if tied:
            self.out.weight = self.words.weight

    def forward(self, tokens):
        return self.out(torch.tanh(self.hidden(self.words(tokens))))


TOKENS = torch.arange(20).view(4, 5)


def test_embeddings_are_sparse_by_choice_only():
    model = Words(tied=False)
    sparse, _ = attach(model)
    assert set(sparse.masks) == {"hidden.weight", "out.weight"}
    _ = sparse.detach()
    sparse, optimizer = attach(model, layers=["*"])
    assert set(sparse.masks) == {"words.weight", "hidden.weight", "out.weight"}
    train(sparse, optimizer, lambda: model(TOKENS).square().mean())
    assert moved(sparse) > 0


def test_an_embedding_with_sparse_gradients_is_refused_with_the_remedy():
    model = Words(tied=False, sparse=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    _ = ss.attach(model, optimizer, rigl(), layers=["words"], total_steps=100)
    with pytest.raises(ValueError, match=r"words\.weight.*sparse=False"):
        model(TOKENS).square().mean().backward()


def test_tied_weights_are_one():
    model = Words(tied=True)
    sparse, optimizer = attach(model)
    assert set(sparse.masks) == {"hidden.weight"}, "an embedding's weight stays out of it, whoever shares it"
    _ = sparse.detach()
    sparse, optimizer = attach(model, layers=["words", "hidden"])
    assert set(sparse.masks) == {"words.weight", "hidden.weight"}
    train(sparse, optimizer, lambda: model(TOKENS).square().mean())
    assert model.out.weight is model.words.weight
    assert moved(sparse) > 0


def test_two_tied_linear_layers_are_counted_once():
    model = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5))
    model[2].weight = model[0].weight
    sparse, optimizer = attach(model, rigl(0.2))
    assert list(sparse.masks) == ["0.weight"] and sparse.target_count == 5
    train(sparse, optimizer, lambda: model(torch.randn(4, 5)).square().mean())
    assert moved(sparse) > 0


def test_recurrent_weights_by_name():
    torch.manual_seed(0)
    model = nn.LSTM(5, 4)
    sparse, optimizer = attach(model, layers=["weight_*"])
    assert set(sparse.masks) == {"weight_ih_l0", "weight_hh_l0"}
    train(sparse, optimizer, lambda: model(torch.randn(6, 2, 5))[0].square().mean())
    assert moved(sparse) > 0


@pytest.mark.parametrize("recurrent", [nn.LSTM(5, 5), nn.GRUCell(5, 5)])
def test_recurrent_weights_that_stay_dense_are_named(recurrent):
    model = nn.Sequential(nn.Linear(5, 5), recurrent)
    with pytest.warns(
        UserWarning, match=r"1\.weight_ih\w*, 1\.weight_hh\w* stay dense: .*layers= names them"
    ):
        sparse, _ = attach(model)
    assert list(sparse.masks) == ["0.weight"]
    sparse.detach()
    sparse, _ = attach(model, layers=["0"])  # by choice
    sparse.detach()


@pytest.mark.parametrize("method", [rigl(), ss.SET(0.25, update_interval=2)])
def test_a_frozen_layer_is_masked_but_never_moves(method):
    model = net()
    model[0].weight.requires_grad_(False)
    values = model[0].weight.detach().clone()
    sparse, optimizer = attach(model, method)
    mask = sparse.masks["0.weight"].clone()
    assert torch.equal(model[0].weight, values * mask)
    train(sparse, optimizer, lambda: model(torch.randn(8, 6)).square().mean())
    assert torch.equal(sparse.masks["0.weight"], mask)
    assert torch.equal(model[0].weight, values * mask)
    assert moved(sparse) > 0


def test_a_layer_unfrozen_later_takes_part():
    model = net()
    model[0].weight.requires_grad_(False)
    sparse, optimizer = attach(model)
    train(sparse, optimizer, lambda: model(torch.randn(8, 6)).square().mean(), 3)
    mask = sparse.masks["0.weight"].clone()
    model[0].weight.requires_grad_(True)
    optimizer.add_param_group({"params": [model[0].weight]})
    optimizer.zero_grad()
    model(torch.randn(8, 6)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    check(sparse)
    train(sparse, optimizer, lambda: model(torch.randn(8, 6)).square().mean(), 4)
    assert not torch.equal(sparse.masks["0.weight"], mask)


def test_a_layer_unfrozen_later_has_sparse_gradients_from_the_first():
    model = net()
    model[0].weight.requires_grad_(False)
    sparse, optimizer = attach(model)
    model[0].weight.requires_grad_(True)
    optimizer.add_param_group({"params": [model[0].weight]})
    model(torch.randn(8, 6)).square().mean().backward()
    check(sparse)


def test_a_frozen_layer_waits_without_getting_in_the_way():
    model = net()
    model[0].weight.requires_grad_(False)
    sparse, _ = attach(model)
    assert len(model[0]._forward_pre_hooks) == 1
    copied = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    assert torch.equal(copied(torch.ones(1, 6)), model(torch.ones(1, 6)))
    model[0].weight.requires_grad_(True)
    _ = model(torch.ones(1, 6))
    assert not model[0]._forward_pre_hooks
    model[0].weight.requires_grad_(False)
    sparse.detach()
    assert not model[0]._forward_pre_hooks


def test_a_layer_frozen_later_stands_still():
    model = net()
    sparse, optimizer = attach(model)
    train(sparse, optimizer, lambda: model(torch.randn(8, 6)).square().mean(), 3)
    model[0].weight.requires_grad_(False)
    values, mask = model[0].weight.detach().clone(), sparse.masks["0.weight"].clone()
    train(sparse, optimizer, lambda: model(torch.randn(8, 6)).square().mean(), 4)
    assert torch.equal(model[0].weight, values) and torch.equal(sparse.masks["0.weight"], mask)


@pytest.mark.parametrize("when", ["before", "after"])
def test_channels_last(when):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    if when == "before":
        model = model.to(memory_format=torch.channels_last)
    sparse, optimizer = attach(model)
    model = model.to(memory_format=torch.channels_last)
    x = torch.randn(2, 4, 8, 8).to(memory_format=torch.channels_last)
    train(sparse, optimizer, lambda: model(x).square().mean())
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert moved(sparse) > 0


@pytest.mark.parametrize(
    "method",
    [
        rigl(),
        rigl(grown_state="warmup"),
        ss.SoftGMP(0.3, update_interval=2, update_end=20),
        ss.STR(0.3, update_interval=2, update_end=20),
        ss.TopKAST(0.3, update_interval=2),
    ],
    ids=lambda method: f"{method.name}-{method.grown_state}",
)
def test_memory_layout_does_not_change_what_is_chosen(method):
    masks = []
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(4, 8, 3)).double().to(memory_format=layout)
        sparse, optimizer = attach(model, method)
        x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1)).double()
        for _ in range(7):
            model(x).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        assert not model[0].weight[~sparse.masks["0.weight"]].any()
        masks.append(sparse.masks["0.weight"])
    assert torch.equal(*masks)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize(
    "method", [rigl(), ss.SET(0.25, update_interval=2), ss.SNIP(0.25), ss.Magnitude(0.25)]
)
def test_dtypes(dtype, method):
    model = net().to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    sparse = ss.attach(model, optimizer, method, total_steps=100)
    train(sparse, optimizer, lambda: model(torch.randn(8, 6).to(dtype)).square().mean())
    assert sparse.target_count == 30 and model[0].weight.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_model_is_cast_after_attachment(dtype):
    model = net()
    sparse, optimizer = attach(model)
    train(sparse, optimizer, lambda: model(torch.randn(8, 6)).square().mean(), 3)
    model.to(dtype)
    optimizer.state.clear()
    train(sparse, optimizer, lambda: model(torch.randn(8, 6).to(dtype)).square().mean(), 4)
    assert model[0].weight.dtype == dtype


def test_weights_that_are_not_contiguous():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 4))
    model[0].weight = nn.Parameter(torch.randn(6, 8).t())
    model[1].weight = nn.Parameter(torch.randn(8, 16)[::2, ::2])
    assert not any(model[i].weight.is_contiguous() for i in (0, 1))
    sparse, optimizer = attach(model)
    train(sparse, optimizer, lambda: model(torch.randn(8, 6)).square().mean())
    assert moved(sparse) > 0


@pytest.mark.parametrize(
    "build", [lambda: nn.LazyLinear(4), lambda: nn.Sequential(nn.Linear(3, 3), nn.LazyLinear(4))]
)
def test_lazy_layers_ask_to_be_run_once(build):
    model = build()
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"weight is not initialised yet: run the model once"):
        _ = ss.attach(model, optimizer, rigl(), total_steps=100)


def test_a_lazy_layer_that_has_run():
    model = nn.Sequential(nn.LazyLinear(8), nn.Linear(8, 2))
    with torch.no_grad():
        _ = model(torch.randn(2, 5))
    sparse, optimizer = attach(model)
    train(sparse, optimizer, lambda: model(torch.randn(8, 5)).square().mean())


def test_a_single_layer_as_the_model():
    model = nn.Linear(6, 4)
    sparse, optimizer = attach(model)
    assert list(sparse.masks) == ["weight"]
    train(sparse, optimizer, lambda: model(torch.randn(8, 6)).square().mean())
    assert moved(sparse) > 0


@pytest.mark.parametrize("name", ss.methods.names("attach"))
def test_density_one_is_dense_training(name):
    model, twin = net(), net()
    method = ss.methods.make(name, density=1.0, **quick(name))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    other = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9)
    sparse = ss.attach(model, optimizer, method, total_steps=10, **given(method, torch.randn(8, 6)))
    for step in range(10):
        x = torch.randn(8, 6)
        for net_, optimizer_ in ((model, optimizer), (twin, other)):
            net_(x).square().mean().backward()
            optimizer_.step()
            optimizer_.zero_grad()
        if method.begins_anew(step, 10):  # the ticket's fine-tuning
            other.state.clear()
    assert sparse.density == 1.0
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_a_layer_without_weights_is_left_alone():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Initializing zero-element tensors")
        model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 0))
    sparse, _ = attach(model)
    assert sparse.target_count == 12


@pytest.mark.parametrize("model", [nn.Sequential(), nn.ReLU(), nn.LayerNorm(3), nn.Embedding(4, 3)])
def test_a_model_without_a_sparse_layer_is_refused(model):
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    with pytest.raises(ValueError, match="no layer"):
        _ = ss.attach(model, optimizer, rigl(), total_steps=100)


def test_a_layer_of_one_weight():
    model = nn.Linear(1, 1)
    sparse, optimizer = attach(model, rigl(1.0, drop_fraction=1.0))
    train(sparse, optimizer, lambda: model(torch.randn(8, 1)).square().mean())
    assert sparse.target_count == 1


def test_complex_weights_keep_their_zeros():
    torch.manual_seed(0)
    model = nn.Linear(6, 4, dtype=torch.complex64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparse = ss.attach(model, optimizer, ss.Static(0.25))
    x = torch.randn(8, 6, dtype=torch.complex64)
    train(sparse, optimizer, lambda: model(x).abs().square().mean(), 3)
    assert sparse.target_count == 6


def test_complex_weights_are_ranked_by_their_size():
    """Both parts count: neither a large weight nor a large gradient lies on the real axis here."""
    model = nn.Linear(6, 4, bias=False, dtype=torch.complex64)
    with torch.no_grad():
        _ = model.weight.copy_(torch.full((4, 6), 0.1))
        model.weight[:, 0] = 3j
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    sparse = ss.attach(model, optimizer, ss.Magnitude(1 / 6))
    assert sparse.masks["weight"][:, 0].all() and sparse.target_count == 4
    _ = sparse.detach()
    method = ss.RigL(1 / 6, update_interval=1, drop_fraction=1.0, update_end=3)
    sparse = ss.attach(model, optimizer, method)
    inputs = torch.zeros(1, 6, dtype=torch.complex64)
    inputs[0, 1], inputs[0, 2] = 1.0, 9j
    for _ in range(3):
        optimizer.zero_grad()
        (model(inputs) - 5).abs().square().sum().backward()
        optimizer.step()
    assert sparse.masks["weight"][:, 2].all()


def test_a_parametrised_layer_is_not_silently_dense():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 4))
    with pytest.warns(UserWarning, match=r"0\.parametrizations\.weight"):
        _ = attach(model)


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning", "ignore:.*weight_norm:DeprecationWarning")
@pytest.mark.parametrize("kind", ["weight_norm", "prune"])
def test_a_layer_whose_weight_is_computed_by_a_hook_is_not_silently_dense(kind):
    layer = nn.Linear(4, 4)
    if kind == "prune":
        from torch.nn.utils import prune

        prune.l1_unstructured(layer, "weight", 0.5)
    else:
        nn.utils.weight_norm(layer)
    model = nn.Sequential(layer, nn.Linear(4, 4))
    with pytest.warns(UserWarning, match=r"0\.weight_\w+.* stay dense: the weights .* are computed"):
        _ = attach(model)
