import copy
import os

import pytest
import torch
from torch import nn

import startsparse as ss
from startsparse.artifact import FormatError, SparseFile, load, save


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.Flatten(),
        nn.Linear(8 * 36, 40),
        nn.ReLU(),
        nn.Linear(40, 10),
    )


def attach(model, method=None, **options):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return ss.attach(model, optimizer, method or ss.Static(density=0.1, seed=3), **options), optimizer


@pytest.fixture
def path(tmp_path):
    return tmp_path / "net.sparse.safetensors"


def test_everything_comes_back_bit_for_bit(content, path, same):
    save(content, path)
    file = load(path)
    same(file, content)
    same(file.masks, content.masks)
    assert file.drawn == content.drawn
    assert file["head.weight"] is file["conv.weight"]
    assert file.metadata["user"] == {"note": "für alle"}
    assert file.metadata["format_version"] == 1
    assert file.metadata["masks"] == ss.masks.fingerprint(content.masks)
    assert file.metadata["density"] == ss.masks.density(content.masks)


def test_saved_again_the_bytes_are_the_same(content, path, tmp_path):
    save(content, path)
    save(load(path), tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


def test_a_sparsifier_is_saved_by_its_masks_and_seeds(path, same):
    model = network()
    sparse, _ = attach(model)
    save(sparse, path, metadata={"epochs": 3})
    file = load(path)
    same(file, model.state_dict())
    same(file.masks, sparse.masks)
    assert set(file.drawn) == {"0.weight", "3.weight", "5.weight"}
    assert file.metadata["method"]["name"] == "static"
    assert file.metadata["source"] == {"name": "dense"}
    assert file.metadata["user"] == {"epochs": 3}
    assert file.metadata["density"] == sparse.density
    assert file.metadata["library"] == f"startsparse {ss.__version__}"


def test_live_weights_that_are_zero_stay_live(path, same):
    model = network()
    sparse, optimizer = attach(
        model, ss.RigL(density=0.2, update_interval=1), total_steps=10, source=ss.RandomSource(0.5)
    )
    for _ in range(2):
        model(torch.randn(4, 3, 8, 8)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert any(
        bool((p[sparse.masks[n]] == 0).any()) for n, p in model.named_parameters() if n in sparse.masks
    )
    save(sparse, path)
    file = load(path)
    same(file.masks, sparse.masks)
    same(load(path, network(1)).state_dict(), model.state_dict())
    assert file.metadata["source"]["density"] == 0.5


def test_a_sparsifier_whose_weights_left_the_mask_is_refused(path):
    model = network()
    sparse, _ = attach(model)
    with torch.no_grad():
        model[3].weight += 1
    with pytest.raises(ValueError, match=r"values of '3\.weight' outside its mask are not zero"):
        save(sparse, path)
    assert not path.exists()


def test_zeros_of_a_plain_model_are_its_mask(path, same):
    model = network()
    with torch.no_grad():
        model[3].weight *= torch.rand(40, 288) < 0.1  # leaves minus zeros
        model[1].weight[3] = 0
    save(model, path)
    file = load(path)
    assert set(file.masks) == {"0.weight", "3.weight", "5.weight"}
    assert torch.equal(file.masks["3.weight"], model[3].weight != 0)
    assert file.masks["5.weight"].all()
    for name, tensor in model.state_dict().items():
        assert torch.equal(file[name], tensor)
    assert not file["3.weight"].signbit().logical_and(file["3.weight"] == 0).any()


def test_a_model_without_sparse_layers_and_a_mapping(path, same):
    norm = nn.BatchNorm1d(3)
    save(norm, path)
    same(load(path), norm.state_dict())
    tensors = {
        "w": torch.eye(30),
        "dense": torch.ones(3, 3),
        "vector": torch.zeros(5),
        "index": torch.zeros(2, 2).int(),
    }
    save(tensors, path)
    same(load(path), tensors)
    assert set(load(path).masks) == {"w"}
    save({}, path)
    assert load(path) == {}


def test_wrappers_leave_no_trace(path, same):
    model = network()
    for wrapped in (torch.compile(model, backend="eager"), nn.DataParallel(model)):
        sparse, _ = attach(wrapped)
        save(sparse, path)
        same(load(path), model.state_dict())
        save(wrapped, path)
        same(load(path), model.state_dict())
        sparse.detach()
        other = network(1)
        load(
            path,
            type(wrapped)(other)
            if isinstance(wrapped, nn.DataParallel)
            else torch.compile(other, backend="eager"),
        )
        same(other.state_dict(), model.state_dict())


def test_tied_tensors_are_stored_once(path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(100, 64)
            self.head = nn.Linear(64, 100, bias=False)
            self.head.weight = self.embed.weight

    save(Tied(), path)
    assert path.stat().st_size < 100 * 64 * 4 + 1000
    back = load(path, Tied())
    assert back.head.weight is back.embed.weight
    apart = Tied()
    apart.head.weight = nn.Parameter(apart.head.weight + 1)
    save(apart, path)
    with pytest.raises(ValueError, match=r"'embed\.weight' and 'head\.weight' are one tensor"):
        load(path, Tied())


def test_load_gives_the_model_and_never_half_of_it(path, same):
    model = network()
    save(model, path)
    other = network(1)
    assert load(path, other) is other
    same(other.state_dict(), model.state_dict())
    for change, reason in [
        (lambda m: m.add_module("more", nn.Linear(2, 2)), r"'more\.bias' is in the model only"),
        (lambda m: m.__delitem__(5), r"'5\.bias' is in the file only"),
        (
            lambda m: m.__setitem__(3, nn.Linear(8, 40)),
            r"'3\.weight' has shape \(40, 288\) in the file, \(40, 8\)",
        ),
        (lambda m: m.double(), r"is torch\.float32 in the file, torch\.float64 in the model"),
        (lambda m: m.to("meta"), "no memory in the model"),
    ]:
        wrong = network(1)
        change(wrong)
        before = copy.deepcopy(wrong.state_dict())
        with pytest.raises(ValueError, match=reason) as caught:
            load(path, wrong)
        assert str(path) in str(caught.value) and not isinstance(caught.value, FormatError)
        if not wrong[0].weight.is_meta:
            same(wrong.state_dict(), before)


def test_metadata_must_be_json(path):
    for bad in ({"a": object()}, {"a": float("nan")}, {"a": {1, 2}}):
        with pytest.raises(ValueError, match="metadata must be what JSON can hold"):
            save(network(), path, metadata=bad)
    assert not path.exists()
    with pytest.raises(TypeError, match="not int"):
        save(3, path)
    save(network(), path)
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got str"):
        load(path, "network")  # type: ignore[arg-type]


def test_a_description_that_json_cannot_hold_becomes_text(path):
    class Stub:
        masks, model, drawn = {}, nn.Linear(2, 2), {}

        def describe(self):
            return {"method": {"clip": float("inf"), "layers": ("a", {"b": nn.ReLU})}, "source": None}

    save(Stub(), path)
    method = load(path).metadata["method"]
    assert method["clip"] == "inf" and method["layers"][0] == "a"
    assert "source" not in load(path).metadata


def test_a_failed_save_leaves_the_old_file(path, monkeypatch):
    save(network(), path)
    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match=r"No space left on device.*net\.sparse\.safetensors"):
        save(network(1), path)
    assert path.read_bytes() == before and os.listdir(path.parent) == [path.name]


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "absent")
    with pytest.raises(FormatError, match="not a regular file"):
        load(tmp_path)
    (tmp_path / "empty").touch()
    with pytest.raises(FormatError, match=r"empty is not a sound compact file: it has 0 bytes"):
        load(tmp_path / "empty")


def test_a_sparse_file_is_a_plain_mapping(content):
    assert isinstance(content, dict) and isinstance(content, SparseFile)


def test_weights_of_integers_are_stored_as_they_are_beside_sparse_ones(path):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(64, 64))
    model[0].weight = nn.Parameter(torch.ones(4, 4, dtype=torch.int8), requires_grad=False)
    with torch.no_grad():
        _ = model[1].weight.mul_(torch.rand(64, 64) < 0.1)
    save(model, path)
    file = load(path)
    assert list(file.masks) == ["1.weight"]
    assert all(torch.equal(value, file[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("thing", "metadata", "message"),
    [
        ({3: torch.ones(2, 2)}, None, "tensors are saved by name, and 3 is not a str"),
        ({"a": torch.ones(2, 2)}, "hello", "metadata must be a mapping of what JSON can hold, got 'hello'"),
        ({"a": torch.ones(2, 2)}, [1], r"metadata must be a mapping of what JSON can hold, got \[1\]"),
    ],
)
def test_things_of_another_kind_are_named(thing, metadata, message, path):
    with pytest.raises(TypeError, match=message):
        save(thing, path, metadata=metadata)
    assert not path.exists()
