"""Models under sparse execution: the same files, from and to live values alone."""

import copy
import tracemalloc

import numpy as np
import pytest
import torch
from torch import nn

import startsparse as ss
from startsparse.artifact import FormatError, load, save
from startsparse.execution.modules import SparseConv2d, SparseLinear, to_sparse


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, groups=2),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8, bias=False),
        nn.Conv2d(8, 6, 1),
        nn.Flatten(),
        nn.Linear(6 * 9, 40),
        nn.ReLU(),
        nn.Linear(40, 10),
    )


def attach(model, execution, density=0.2, seed=3, **options):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    method = ss.SET(density=density, seed=seed, update_interval=1, update_end=1.0)
    return ss.attach(model, optimizer, method, total_steps=10, execution=execution, **options), optimizer


def trained(execution, steps=2, **options):
    """A sparsifier whose masks are no draws any more."""
    model = network()
    sparse, optimizer = attach(model, execution, **options)
    torch.manual_seed(5)
    for _ in range(steps):
        model(torch.randn(4, 4, 8, 8)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return sparse


@pytest.fixture
def path(tmp_path):
    return tmp_path / "net.sparse.safetensors"


def check(sparse, state, masks, same) -> None:
    """A sparsifier's model holds this state, bit for bit, and these masks."""
    same(sparse.dense_state_dict(), state)
    same(dict(sparse.masks), masks)


def test_the_bytes_do_not_depend_on_the_execution(path):
    written = set()
    for execution in ("masked", "sparse"):
        sparse, _ = attach(network(), execution)
        save(sparse, path)
        written.add(path.read_bytes())
    assert len(written) == 1
    assert len(load(path).drawn) == 5


@pytest.mark.parametrize("steps", [0, 2])
def test_from_sparse_to_everything(path, same, steps):
    sparse = trained("sparse", steps)
    assert {type(sparse.model[i]) for i in (0, 2, 3)} == {SparseConv2d}
    save(sparse, path)
    file, state, masks = load(path), sparse.dense_state_dict(), dict(sparse.masks)
    same(file, state)
    same(file.masks, masks)
    assert (file["5.weight"][file.masks["5.weight"]] == 0).any() == (steps > 0)  # grown weights are live
    same(load(path, network(1)).state_dict(), state)
    other, _ = attach(network(1), "sparse", density=0.1, seed=9)
    assert load(path, other.model) is other.model
    check(other, state, masks, same)
    save(sparse.model, path)
    same(load(path).masks, masks)
    same(load(path), state)


def test_from_masked_to_sparse_and_back(path, tmp_path, same):
    masked = trained("masked")
    save(masked, path)
    state, masks = copy.deepcopy(masked.dense_state_dict()), dict(masked.masks)
    sparse, optimizer = attach(network(1), "sparse", seed=9)
    load(path, sparse.model)
    check(sparse, state, masks, same)
    save(sparse.model, tmp_path / "sparse")
    again = network(2)
    optimizer_again = torch.optim.SGD(again.parameters(), lr=0.1)
    method, source = ss.Static(density=sparse.density), ss.MaskSource(masks)
    masked = ss.attach(again, optimizer_again, method, source=source)
    load(tmp_path / "sparse", again)
    check(masked, state, masks, same)
    sparse.model(torch.randn(4, 4, 8, 8)).square().mean().backward()
    optimizer.step()  # the loaded layers train on


def test_layers_of_both_executions_in_one_model(path, same):
    model = nn.Sequential(nn.Linear(30, 20), nn.Conv1d(2, 8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.warns(UserWarning, match="stay masked-dense"):
        sparse = ss.attach(model, optimizer, ss.Static(density=0.1), execution="sparse")
    save(sparse, path)
    file = load(path)
    same(file, sparse.dense_state_dict())
    same(file.masks, dict(sparse.masks))
    assert set(file.drawn) == {"0.weight", "1.weight"}
    load(path, model)
    same(sparse.dense_state_dict(), file)


def test_a_mask_is_never_asked_of_a_sparse_layer(path, monkeypatch):
    sparse = trained("sparse")
    for execution in (SparseLinear, SparseConv2d):
        monkeypatch.setattr(execution, "dense_weight", lambda self: pytest.fail("a dense weight was made"))
    monkeypatch.setattr(type(sparse._sites["0.weight"]), "mask", property(lambda self: pytest.fail("a mask")))
    save(sparse, path)
    load(path, sparse.model)


def test_live_and_dead_extremes(path, same):
    """A layer kept whole, one without live weights, values with every kind of bits."""
    model = nn.Sequential(nn.Linear(9, 5), nn.Linear(5, 7, bias=False))
    weight = torch.arange(45.0).view(5, 9) - 9
    weight[0, :3] = torch.tensor([-0.0, float("nan"), float("-inf")])
    to_sparse(model[0], (5, 9), torch.arange(45), weight.reshape(-1))
    to_sparse(model[1], (7, 5), torch.empty(0, dtype=torch.int64), torch.empty(0))
    save(model, path)
    file = load(path)
    assert file.masks["0.weight"].all() and not file.masks["1.weight"].any()
    assert file["0.weight"].numpy().tobytes() == weight.numpy().tobytes()
    other = nn.Sequential(nn.Linear(9, 5), nn.Linear(5, 7, bias=False))
    for layer in other:
        to_sparse(layer, tuple(layer.weight.shape), torch.tensor([2, 4]), torch.ones(2))
    load(path, other)
    assert other[0].weight.numel() == 45 and other[1].weight.numel() == 0
    same(dict(other.state_dict()), dict(model.state_dict()))


def test_a_dense_tensor_is_a_layer_kept_whole(path):
    dense = nn.Linear(6, 4)
    save(dense, path)
    sparse = nn.Linear(6, 4)
    to_sparse(sparse, (4, 6), torch.tensor([3, 5]), torch.ones(2))
    load(path, sparse)
    assert torch.equal(sparse.dense_weight(), dense.weight)
    save({"weight": dense.weight.detach(), "bias": dense.bias.detach()}, path)
    load(path, sparse)
    assert torch.equal(sparse.dense_weight(), dense.weight)


def test_one_module_under_two_names(path):
    def shared():
        layer = nn.Linear(20, 20)
        to_sparse(layer, (20, 20), torch.arange(0, 400, 9), torch.randn(45))
        return nn.Sequential(layer, nn.ReLU(), layer)

    model = shared()
    save(model, path)
    back = load(path, shared())
    assert torch.equal(back[0].dense_weight(), model[0].dense_weight())
    apart = nn.Sequential(nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 20))
    load(path, apart)
    assert torch.equal(apart[2].weight, model[0].dense_weight())
    save(apart, path)
    assert torch.equal(load(path, shared())[0].dense_weight(), model[0].dense_weight())
    with torch.no_grad():
        apart[2].weight[0, 0] += 1
    save(apart, path)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"'0\.weight' and '2\.weight' are one tensor"):
        load(path, model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_what_does_not_fit_harms_nothing(path, same):
    sparse = trained("sparse")
    before = copy.deepcopy(sparse.model.state_dict())
    wider, double, fewer = network(1), network(1).double(), network(1)
    wider[5] = nn.Linear(6 * 9 + 1, 40)
    del fewer[7]
    for model, reason in (
        (wider, r"'5\.weight' has shape \(40, 55\) in the file, \(40, 54\) in the model"),
        (double, r"'0\.weight' is torch\.float64 in the file, torch\.float32 in the model"),
        (fewer, r"'7\.weight' is in the model only"),
    ):
        save(model, path)
        with pytest.raises(ValueError, match=reason):
            load(path, sparse.model)
        same(dict(sparse.model.state_dict()), dict(before))


@pytest.mark.parametrize("layer", [0, 5, 7])
def test_a_load_that_fails_halfway_is_undone(path, same, monkeypatch, layer):
    save(trained("masked"), path)
    sparse = trained("sparse", density=0.1)
    before = copy.deepcopy(sparse.model.state_dict())
    whole = SparseLinear.load_weight
    victim = sparse.model[layer]

    def fail(self, *args):
        if self is victim:
            raise MemoryError("no more")
        whole(self, *args)

    for execution in (SparseLinear, SparseConv2d):
        monkeypatch.setattr(execution, "load_weight", fail)
    with pytest.raises(MemoryError, match="no more"):
        load(path, sparse.model)
    same(dict(sparse.model.state_dict()), dict(before))


def test_damaged_positions_harm_nothing(path, same):
    model = nn.Linear(100, 50)
    to_sparse(model, (50, 100), torch.arange(0, 5000, 41), torch.randn(122))
    before = copy.deepcopy(model.state_dict())
    save(model, path)
    content = np.fromfile(path, np.uint8)
    content[-3] ^= 4
    content.tofile(path)
    with pytest.raises(FormatError, match="checksum"):
        load(path, model)
    same(dict(model.state_dict()), dict(before))


def huge(live: int = 2000, seed: int = 0) -> SparseLinear:
    """A layer of a billion weights, built from a few positions."""
    side = 1 << 15
    with torch.device("meta"):
        layer = nn.Linear(side, side)
    layer.bias = nn.Parameter(torch.zeros(side))
    generator = torch.Generator().manual_seed(seed)
    positions = torch.randint(side**2, (live,), generator=generator).unique()
    to_sparse(layer, (side, side), positions, torch.randn(len(positions), generator=generator))
    assert isinstance(layer, SparseLinear)
    return layer


def test_a_billion_weights_need_no_memory_of_that_size(path, same):
    layer, other = huge(), huge(100, seed=1)
    tracemalloc.start()  # counts numpy; torch's allocations are proportional to live weights by the modules' laws
    try:
        save(layer, path)
        load(path, other)
        assert tracemalloc.get_traced_memory()[1] < 1 << 25  # less than a bit a weight
    finally:
        tracemalloc.stop()
    same(dict(other.state_dict()), dict(layer.state_dict()))
    with pytest.raises(FormatError, match=r"5,368,840,192 bytes.*or a model: nothing dense is made"):
        load(path)
    with pytest.raises(FormatError, match="more than the 1,000 allowed"):
        load(path, other, max_bytes=1000)
    assert load(path, other, max_bytes=1 << 20) is other
