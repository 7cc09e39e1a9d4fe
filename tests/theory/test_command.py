"""``startsparse embed``: a file in; certificate, source and picture out; and the check of what it wrote."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import startsparse as ss
from startsparse import theory
from startsparse.cli.main import main
from startsparse.training import models

OPTIONS = ["widths=[6]", "input_shape=[1,2,2]", "classes=3"]


FILE = ["net.safetensors", "--model", "mlp", *OPTIONS]


@pytest.fixture
def net(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = models.make("mlp", widths=(6,), input_shape=(1, 2, 2), classes=3)
    save_file(made.state_dict(), tmp_path / "net.safetensors")
    return made


def embed(*more: str, target: str = "net.safetensors") -> int:
    return main(["embed", target, "--model", "mlp", *OPTIONS, *more])


def test_files_and_their_check(net, tmp_path, capsys):
    assert embed("--density", "0.5", "--box", "0", "1", "--seed", "3", "--no-picture") == 0
    printed = capsys.readouterr().out
    said = theory.Certificate.from_json((tmp_path / "embedded/certificate.json").read_text())
    assert (
        said.source["seed"] == 3
        and said.box == (0.0, 1.0)
        and f"{said.source_positions:,} positions" in printed
    )
    tensors = load_file(tmp_path / "embedded/source.safetensors")
    assert len(theory.verify(said, net, tensors)) == 4
    assert not (tmp_path / "embedded/success.png").exists()
    assert embed("--check", "embedded") == 0
    assert "lie on active positions" in capsys.readouterr().out
    (tmp_path / "embedded/certificate.json").write_text(
        said.as_json().replace('"delta": 0.1', '"delta": 0.2')
    )
    assert embed("--check", "embedded") == 2
    assert "the certificate was altered" in capsys.readouterr().err


def test_a_compact_file_and_another_assignment(net, tmp_path):
    ss.save(net, tmp_path / "net.sparse.safetensors")
    more = ("--density", "0.5", "--assignment", "adaptive", "--out", "b", "--no-picture")
    assert embed(*more, target="net.sparse.safetensors") == 0
    assert "adaptive" in json.loads((tmp_path / "b/certificate.json").read_text())["construction"]


def test_densities_of_single_layers(net, tmp_path):
    more = ("--layer-densities", "inputs=0.9", "fc2=0.7", "--no-picture")
    assert embed("--density", "0.5", *more) == 0
    said = json.loads((tmp_path / "embedded/certificate.json").read_text())
    found = {name: density for name, *_, density in said["source"]["layers"]}
    assert found == {"inputs": 0.9, "fc1": 0.5, "fc2": 0.7}


def test_a_picture(net, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("startsparse.theory.picture._TRIALS", 2)
    assert embed("--density", "0.6") == 0
    picture = (tmp_path / "embedded/success.png").read_bytes()
    assert picture[:4] == b"\x89PNG" and len(picture) > 10_000


def image_net(shape: tuple[int, ...]) -> list[str]:
    """A file of a net that takes images of one shape, not square, and no other; the arguments that say so."""
    save_file(models.make("lenet5", input_shape=shape).state_dict(), "images.safetensors")
    given = f"input_shape=[{','.join(map(str, shape))}]"
    return ["embed", "images.safetensors", "--model", "lenet5", given]


def test_images_that_are_not_square(net, tmp_path):
    command = image_net((1, 12, 14))
    assert main([*command, "--density", "0.9", "--no-picture"]) == 0
    assert json.loads((tmp_path / "embedded/certificate.json").read_text())["probes"] == 16
    assert main([*command, "--check", "embedded"]) == 0


def test_the_shape_of_inputs_is_told(net, tmp_path, capsys):
    assert embed("--density", "0.5", "--no-picture", "--input-shape", "4") == 0
    assert json.loads((tmp_path / "embedded/certificate.json").read_text())["probes"] == 256
    assert embed("--check", "embedded", "--input-shape", "4") == 0
    assert "on 256 inputs" in capsys.readouterr().out
    assert embed("--check", "embedded", "--input-shape", "5") == 2
    assert "does not take example_input, a batch of shape (256, 5)" in capsys.readouterr().err


def test_a_run_knows_the_shape_of_its_inputs(net, tmp_path, capsys):
    text = "data: {name: digits}\nmodel: {name: mlp, widths: [4]}\noptimizer: {name: sgd, lr: 0.1}\ntrain: {steps: 1}\n"
    (tmp_path / "recipe.yaml").write_text(text)
    assert main(["train", "recipe.yaml", "--quiet"]) == 0
    (run,) = (tmp_path / "runs").iterdir()
    assert main(["embed", str(run), "--density", "0.9", "--no-picture"]) == 0
    assert json.loads((tmp_path / "embedded/certificate.json").read_text())["probes"] == 16
    assert main(["embed", str(run), "--check", "embedded"]) == 0
    assert "on 16 inputs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["net.safetensors", "--density", "0.5"], "--model is missing"),
        (["net.safetensors", "--model", "mlp", *OPTIONS], "--density is missing"),
        (["net.safetensors", "--model", "mlp", *OPTIONS, "--density", "2"], "density must be in"),
        ([*FILE, "--density", "0.5", "--layer-densities", "fc3=0.5"], "'fc3' is not a layer of the source"),
        ([*FILE, "--density", "0.5", "--layer-densities", "fc1"], "LAYER=P was expected"),
        ([*FILE, "--layer-densities", "fc1=0.5"], "must name the layers"),
        (["net.safetensors", "--model", "mlp", "--density", "0.5"], "does not fit the model mlp"),
        ([*FILE, "--density", "0.5", "--input-shape", "1", "0", "2"], "sizes are positive, got 1 0 2"),
        (["other.safetensors", "--density", "0.5"], "No such file"),
        ([".", "--density", "0.5"], "not the folder of a finished run"),
        (
            ["text.safetensors", "--model", "mlp", "--density", "0.5"],
            "neither a compact nor a plain safetensors",
        ),
        (
            ["net.safetensors", "--model", "mlp", *OPTIONS, "--density", "0.5", "--assignment", "bloc"],
            "did you mean",
        ),
    ],
)
def test_mistakes(net, tmp_path, capsys, arguments, message):
    (tmp_path / "text.safetensors").write_text("hello")
    assert main(["embed", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "embedded").exists()


def test_files_that_are_not_sound_are_named(net, tmp_path, capsys):
    torch.save(net.state_dict(), tmp_path / "net.pt")
    assert embed("--density", "0.5", "--no-picture", target="net.pt") == 2
    assert "net.pt looks like a file of torch.save" in capsys.readouterr().err
    assert embed("--density", "0.5", "--no-picture") == 0
    source = tmp_path / "embedded/source.safetensors"
    source.write_bytes(source.read_bytes()[:-9])
    assert embed("--check", "embedded") == 2
    assert "source.safetensors is not a sound safetensors file" in capsys.readouterr().err
