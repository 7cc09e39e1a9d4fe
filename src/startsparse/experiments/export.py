"""The trained net of a run in a form for elsewhere: dense weights, the compact file, or ONNX."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save as to_safetensors

import startsparse as ss
from startsparse.experiments.results import ResultsError, read
from startsparse.names import nearest
from startsparse.training import build, reading, recipe
from startsparse.training.files import write_atomic
from startsparse.training.folder import RunFolder


def export(folder: str | Path, to: str, output: str | Path | None = None) -> Path:
    """Write the net of a finished run to a file of its own.

    Args:
        folder: of the run.
        to: "dense" (safetensors, true zeros in place), "sparse" (the compact file) or "onnx".
        output: the file; default: the run's name and the ending of the form, in the present folder.

    Returns:
        The file that was written.

    Raises:
        ResultsError: the run has not ended, or an unknown form.
        ModuleNotFoundError: ONNX without its packages; the extra is named.
    """
    run = read(Path(folder))
    if to not in FORMS:
        raise ResultsError(f"there is no form {to!r}: {nearest(to, list(FORMS))}")
    ending, make = FORMS[to]
    place = Path(output) if output is not None else Path(run.folder.resolve().name + ending)
    if place.is_dir():
        raise ResultsError(f"{place} is a folder: name the file to write")
    write_atomic(place, make(run.folder))
    return place


def dense(folder: Path) -> bytes:
    """A safetensors file of all tensors under their plain names."""
    file = ss.load(RunFolder(folder).net)
    tensors = {name: file[name].contiguous() for name in file}
    return to_safetensors(tensors, {"format": "pt"})


def sparse(folder: Path) -> bytes:
    """The compact file, as it is."""
    return RunFolder(folder).net.read_bytes()


def onnx(folder: Path) -> bytes:
    """An ONNX model of float32 weights, zeros in place, for inputs that are normalised as in training.

    It is called ``inputs`` (batch of any size first) -> ``outputs``.
    """
    for package in ("onnx", "onnxscript"):
        try:
            importlib.import_module(package)
        except ImportError as error:
            message = f"ONNX export needs the package {package}: pip install 'startsparse[onnx]'"
            raise ModuleNotFoundError(message, name=package) from error
    chosen = recipe.parse(reading.read_yaml(folder / "recipe.yaml"))
    model = build.model_of(chosen)
    ss.load(RunFolder(folder).net, model)
    example = build.example_of(chosen.data.entry(), 2)
    with warnings.catch_warnings(action="ignore"):  # the exporter's own, about its insides
        program = torch.onnx.export(
            model.eval(),
            (example,),
            dynamo=True,
            input_names=["inputs"],
            output_names=["outputs"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
    assert program is not None
    return program.model_proto.SerializeToString()


FORMS: dict[str, tuple[str, Callable[[Path], bytes]]] = {
    "dense": (".safetensors", dense),
    "sparse": (".sparse.safetensors", sparse),
    "onnx": (".onnx", onnx),
}
