"""Exports hold the net of the run, bit for bit."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import startsparse as ss
from startsparse.experiments.export import export
from startsparse.experiments.results import ResultsError
from startsparse.training import build, reading, recipe

HAS_ONNX = all(importlib.util.find_spec(package) for package in ("onnx", "onnxscript", "onnxruntime"))


def trained_model(run):
    model = build.model_of(recipe.parse(reading.read_yaml(run.folder / "recipe.yaml")))
    ss.load(run.folder / "net.sparse.safetensors", model)
    return model.eval()


def test_dense_weights(trained, tmp_path):
    for run in trained:
        place = export(run.folder, "dense", tmp_path / "net.safetensors")
        tensors, model = load_file(place), trained_model(run)
        assert set(tensors) == set(model.state_dict())
        assert all(torch.equal(tensors[name], value) for name, value in model.state_dict().items())
    assert int((load_file(export(trained[0].folder, "dense", place))["fc1.weight"] != 0).sum()) < 512


def test_the_compact_file(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = trained[0]
    place = export(run.folder, "sparse")
    assert place.name == f"{run.folder.name}.sparse.safetensors"
    assert place.read_bytes() == (run.folder / "net.sparse.safetensors").read_bytes()


@pytest.mark.skipif(HAS_ONNX, reason="the packages are there")
def test_onnx_names_its_extra(trained, tmp_path):
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'startsparse\[onnx\]'"):
        export(trained[0].folder, "onnx", tmp_path / "net.onnx")
    assert not (tmp_path / "net.onnx").exists()


@pytest.mark.skipif(not HAS_ONNX, reason="needs startsparse[onnx] and onnxruntime")
def test_onnx_computes_the_same(trained, tmp_path):
    import onnxruntime

    place = export(trained[0].folder, "onnx", tmp_path / "net.onnx")
    inputs = torch.randn(5, 1, 8, 8)
    (found,) = onnxruntime.InferenceSession(place).run(None, {"inputs": inputs.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(found, trained_model(trained[0])(inputs).numpy(), atol=1e-5)


def test_bad_questions(trained, finished, tmp_path):
    with pytest.raises(ResultsError, match="no form 'onx': did you mean 'onnx'"):
        export(trained[0].folder, "onx")
    with pytest.raises(ResultsError, match="is a folder"):
        export(trained[0].folder, "dense", tmp_path)
    with pytest.raises(ResultsError, match="no folder of a run"):
        export(tmp_path, "dense")
