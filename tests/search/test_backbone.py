"""Many masks over one set of weights: switching, files, and masks that belong to other weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import startsparse as ss
from startsparse.artifact import FormatError
from startsparse.searching.backbone import _write_bits

from .nets import advance, copies, make, net, same_bits


def found(seed, model):
    search = ss.search(model, ss.JackpotReleased(0.2, init="random", seed=seed))
    advance(search, torch.optim.SGD(search.scores(), lr=0.5), range(3))
    return search, search.finish()


def two_masks():
    """A backbone with two jackpots, each with its own batch-norm statistics, and the models they came from."""
    model, snapshots = net(), {}
    dense = copies(model)
    backbone = ss.Backbone(model, layers=["0", "3"])
    for name, seed in (("one", 1), ("two", 2)):
        _, masks = found(seed, model)
        backbone.add(name, masks)
        snapshots[name] = {key: value.clone() for key, value in model.state_dict().items()}
        backbone.restore()
        assert all(same_bits(copies(model)[n], dense[n]) for n in dense)
    return backbone, snapshots


def same_state(model, snapshot):
    return all(torch.equal(value, snapshot[key]) for key, value in model.state_dict().items())


def test_switching():
    backbone, snapshots = two_masks()
    fresh = net().state_dict()
    assert backbone.names == ["one", "two"]
    for name in ("two", "one", "one", "two"):
        backbone.switch(name)
        assert backbone.current == name
        assert same_state(backbone.model, snapshots[name])
        masks = backbone.masks(name)
        assert all(torch.equal(backbone.model.state_dict()[n] != 0, mask) for n, mask in masks.items())
    backbone.restore()
    assert same_state(backbone.model, fresh)
    assert backbone.current is None


def test_weights_of_a_search_are_a_backbone():
    """After finish() the model has lost its inactive weights; the search still has them."""
    model = net()
    dense = copies(model)
    search, masks = found(1, model)
    backbone = ss.Backbone(model, weights=search.weights)
    assert all(same_bits(copies(model)[n], dense[n]) for n in masks)
    backbone.add("one", masks)
    backbone.switch("one")
    assert all(torch.equal(model.state_dict()[n] != 0, mask) for n, mask in masks.items())


def test_files(tmp_path):
    backbone, snapshots = two_masks()
    for name in backbone.names:
        backbone.save(name, tmp_path / f"{name}.mask.safetensors")
    size = (tmp_path / "one.mask.safetensors").stat().st_size
    assert size < 864 / 8 + 2600  # a bit a weight or less, batch norm's statistics, the header
    ss.save(backbone.restore(), tmp_path / "weights.sparse.safetensors")
    other = ss.load(tmp_path / "weights.sparse.safetensors", net(seed=7))
    again = ss.Backbone(other, layers=["0", "3"])
    for name in ("two", "one"):
        again.load(tmp_path / f"{name}.mask.safetensors", name)
        again.switch(name)
        assert same_state(other, snapshots[name])


def test_a_mask_of_other_weights_is_refused(tmp_path):
    backbone, _ = two_masks()
    file = tmp_path / "one.mask.safetensors"
    backbone.save("one", file)
    other = ss.Backbone(net(seed=7), layers=["0", "3"])
    with pytest.raises(ValueError, match=r"one.mask.safetensors is a mask of other weights"):
        other.load(file, "one")
    fewer = ss.Backbone(net(), layers=["0"])
    with pytest.raises(ValueError, match=r"is a mask of other layers: 3.weight"):
        fewer.load(file, "one")
    assert other.names == fewer.names == []
    with torch.no_grad():
        model = net()
        model[0].weight[0, 0, 0, 0] = -model[0].weight[0, 0, 0, 0]
    with pytest.raises(ValueError, match="other weights"):
        ss.Backbone(model, layers=["0", "3"]).load(file, "one")


def test_damaged_files(tmp_path):
    """A file with any byte changed or any tail missing is refused, never believed."""
    backbone, _ = two_masks()
    file = tmp_path / "one.mask.safetensors"
    backbone.save("one", file)
    content = bytearray(file.read_bytes())
    for at in [*range(60), *range(60, len(content), 23)]:
        damaged = bytearray(content)
        damaged[at] ^= 0x21
        file.write_bytes(damaged)
        with pytest.raises(ValueError):
            backbone.load(file, "bad")
    for length in range(0, len(content), 97):
        file.write_bytes(content[:length])
        with pytest.raises(FormatError):
            backbone.load(file, "bad")
    ss.save(nn.Linear(4, 4), file)
    with pytest.raises(FormatError, match="its metadata say format 'startsparse'"):
        backbone.load(file, "bad")
    assert "bad" not in backbone.names


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [1, 7, 8, 9, 40000])
def test_writing_by_bits(dtype, size):
    """Against torch.where, bit for bit; minus zero and every dtype."""
    generator = torch.Generator().manual_seed(size)
    weight = torch.randn(size, generator=generator).to(dtype)
    mask = torch.rand(size, generator=generator) < 0.3
    out = torch.full_like(weight, 9)
    _write_bits(out, weight, np.packbits(mask.numpy()))
    expected = torch.where(mask, weight, torch.zeros((), dtype=dtype))
    assert torch.equal(out.view(torch.uint8), expected.view(torch.uint8))


def test_channels_last_weights():
    model = net().to(memory_format=torch.channels_last)
    backbone = ss.Backbone(model, layers=["0", "3"])
    masks = {n: torch.rand(w.shape) < 0.5 for n, w in backbone.weights.items()}
    backbone.add("one", masks)
    backbone.switch("one")
    assert all(torch.equal(model.state_dict()[n] != 0, mask) for n, mask in masks.items())


def test_bad_input():
    model = net()
    backbone = ss.Backbone(model, layers=["0", "3"])
    with pytest.raises(ValueError, match="no mask 'one'"):
        backbone.switch("one")
    with pytest.raises(ValueError, match=r"no mask for '3.weight'.*layers=list\(masks\)"):
        backbone.add("one", {"0.weight": torch.ones(8, 4, 3, 3, dtype=torch.bool)})
    search = ss.search(net(), make("jackpot"), total_steps=2)
    with pytest.raises(ValueError, match=r"0.weight is searched or attached"):
        ss.Backbone(search.model)
