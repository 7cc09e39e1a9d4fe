"""Certificates: what they say is checked by doing it again, and whatever was altered is refused with the reason."""

from __future__ import annotations

import copy
import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from startsparse import theory
from startsparse.theory.rounding import bound

from .nets import inputs, make


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return make("mlp")


@pytest.fixture(scope="module")
def found(net) -> theory.Embedding:
    return theory.embed(net, density=0.3, seed=4)


def tensors(found: theory.Embedding) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in found.model.state_dict().items()}


def forged(
    found: theory.Embedding, net: nn.Module, changed: dict[str, Tensor], **claims
) -> theory.Certificate:
    """A certificate whose maker knows how to seal: about other tensors, with other claims."""
    model = theory.SubNetwork(theory.trace(net), found.source.copies, changed)
    return dataclasses.replace(found.certificate, **{"model": model.digest()} | claims)


def test_says_what_was_done(found):
    said = json.loads(found.certificate.as_json())
    assert said["construction"] == "L layers in L + 1, block"
    assert said["source"]["seed"] == 4 and said["source"]["copies"] == found.source.copies
    assert [layer[0] for layer in said["source"]["layers"]] == ["inputs", "0", "2", "4"]
    assert said["edges"] == sum(layer["edges"] for layer in said["layers"].values()) == found.model.edges
    assert said["layers"]["4"] == {"units": 3, "edges": 24, "source_units": 3}
    assert 0.9 <= said["chance"] < 1 and said["delta"] == 0.1
    assert 0 < said["error_measured"] <= said["error_bounded"] < 1e-10


def test_holds_for_the_files_of_an_embedding(found, net, tmp_path):
    found.certificate.save(tmp_path / "certificate.json")
    save_file(tensors(found), tmp_path / "source.safetensors")
    text = (tmp_path / "certificate.json").read_text()
    assert theory.Certificate.from_json(text) == found.certificate
    assert len(theory.verify(text, net, load_file(tmp_path / "source.safetensors"))) == 4


def test_any_byte_altered_is_refused(found, net):
    text = found.certificate.as_json()
    for at in range(0, len(text), 7):
        other = "x" if text[at] != "x" else "y"
        for byte in (other, chr(ord(text[at]) ^ 1), " "):
            if byte != text[at]:
                with pytest.raises(theory.CertificateError):
                    theory.verify(text[:at] + byte + text[at + 1 :], net, found.model)
    with pytest.raises(theory.CertificateError, match="not a certificate"):
        theory.verify("{}", net, found.model)


def test_another_target_or_model_is_refused(found, net):
    other = copy.deepcopy(net)
    other[2].bias.data[3] += 2.0**-20
    with pytest.raises(theory.CertificateError, match="target's weights"):
        found.verify(other)
    with pytest.raises(theory.CertificateError, match="target's weights"):
        found.verify(make("sparse mlp"))
    with pytest.raises(theory.CertificateError, match="sub-network's tensors"):
        theory.verify(found.certificate, net, theory.embed(net, density=0.3, seed=5).model)
    changed = tensors(found)
    changed["layers.0.values"].view(torch.uint8)[11] ^= 1
    with pytest.raises(theory.CertificateError, match="sub-network's tensors"):
        theory.verify(found.certificate, net, changed)
    del changed["layers.1.crow"]
    with pytest.raises(theory.CertificateError, match="not a sub-network"):
        theory.verify(found.certificate, net, changed)


def swap_first_two(tensor: Tensor) -> Tensor:
    return torch.cat([tensor[1:2], tensor[:1], tensor[2:]])


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("layers.1.values", lambda t: t * (1 + 2.0**-50), "layer 2: a unit does not carry the weights"),
        ("layers.0.values", swap_first_two, "layer 0: a unit does not carry the weights"),
        ("layers.2.bias", lambda t: t + 1e-9, "layer 4: a bias is not that of the target"),
        ("layers.1.columns", lambda t: t.roll(1), "layer 2"),
        ("layers.0.units", lambda t: t + 1, "layer 0"),
        ("layers.0.units", lambda t: t * 0, "layer 0: its units are not units of the source, in order"),
        ("layers.1.serves", lambda t: t.roll(1), "layer 2"),
        ("layers.2.serves", lambda t: t.flip(0), "layer 4"),
        ("layers.2.serves", lambda t: t - 1, "serve neurons the target does not have"),
        ("layers.1.crow", lambda t: t.flip(0), "compressed rows are not sound"),
        ("layers.1.columns", lambda t: t + 10**6, "compressed rows are not sound"),
        ("entrance.weight", lambda t: t * 2, "does not copy its inputs"),
        ("entrance.bias", lambda t: t + 1, "does not copy its inputs"),
        ("entrance.reads", lambda t: t.roll(1), "lies on a position that is not active"),
        ("entrance.reads", lambda t: t + 5, "inputs the target does not have"),
        ("entrance.units", lambda t: t + 1, r"not active|not units of the source"),
    ],
)
def test_a_forger_who_seals_is_found_out(found, net, key, change, message):
    changed = tensors(found)
    changed[key] = change(changed[key]).contiguous()
    claim = forged(found, net, changed)
    with pytest.raises(theory.CertificateError, match=message):
        theory.verify(claim, net, changed)


def test_outputs_in_another_order_are_found_out(found, net):
    """Two outputs change places with all that belongs to them: every unit is right, the net is not."""
    changed = tensors(found)
    order = torch.tensor([1, 0, 2])
    changed["layers.2.serves"] = order
    changed["layers.2.bias"] = changed["layers.2.bias"][order]
    changed["layers.2.values"] = changed["layers.2.values"].view(3, 8)[order].flatten()
    claim = forged(found, net, changed)
    with pytest.raises(theory.CertificateError, match=r"not active|carry the weights|outputs are not those"):
        theory.verify(claim, net, changed)


@pytest.mark.parametrize(
    ("claims", "message"),
    [
        ({"edges": 7}, "number of edges"),
        ({"error_bounded": 1e-20}, "error bound differs"),
        ({"error_measured": 1.0}, "certified as measured, 1, is above the bound"),
        ({"error_measured": float("nan")}, "is above the bound"),
        ({"chance": 0.99}, "the probability differs"),
        ({"source_positions": 10}, "source's positions"),
        ({"source_edges": 10}, "source's expected edges"),
        ({"signs": 1}, "does not copy its inputs"),
        ({"signs": 3}, "signs must be 1 or 2"),
        ({"shift": 1.0}, "does not copy its inputs"),
        ({"layers": {}}, "layers' units and edges"),
    ],
)
def test_claims_are_computed_again(found, net, claims, message):
    with pytest.raises(theory.CertificateError, match=message):
        theory.verify(dataclasses.replace(found.certificate, **claims), net, found.model)


def test_another_source_is_found_out(found, net):
    described = found.certificate.source
    for change in ({"seed": 5}, {"layers": [[*layer[:5], 0.2] for layer in described["layers"]]}):
        claim = dataclasses.replace(found.certificate, source=described | change)
        with pytest.raises(theory.CertificateError, match="not active in the source"):
            theory.verify(claim, net, found.model)
    for change in ({"layers": [[*layer[:5], 2.0] for layer in described["layers"]]}, {"seed": "a"}):
        claim = dataclasses.replace(found.certificate, source=described | change)
        with pytest.raises(theory.CertificateError, match="cannot be drawn"):
            theory.verify(claim, net, found.model)


def test_an_addition_of_other_channels_is_found_out():
    net = make("forked")
    found = theory.embed(net, density=0.5)
    changed = tensors(found)
    names = list(theory.trace(net).layers)
    at = names.index("b")
    changed[f"layers.{at}.serves"] = changed[f"layers.{at}.serves"].roll(1)
    with pytest.raises(theory.CertificateError, match=r"layer b|addition"):
        theory.verify(forged(found, net, changed), net, changed)


@pytest.mark.parametrize("name", ["mlp", "cnn", "small-cnn", "image mlp"])
def test_rounding_stays_below_its_bound(name):
    """The bound holds where it is tried hardest: at the corners of the box, summed in two orders."""
    net = make(name)
    target = theory.trace(net)
    low, high = -1.0, 1.0
    found = theory.embed(net, density=0.5, box=(low, high))
    x = inputs(name, 64).sign()
    with torch.no_grad():
        worst = float((copy.deepcopy(net).double()(x) - found.model(x)).abs().max())
    ones = np.ones(target.inputs)
    assert worst <= bound(target, ones, 0 * ones) <= found.certificate.error_bounded
