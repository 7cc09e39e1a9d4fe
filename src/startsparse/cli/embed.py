"""Find a trained net inside a random sparse one, exactly; or check the certificate of such a find."""

from __future__ import annotations

import argparse
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

EPILOG = """\
examples:
  startsparse embed net.safetensors --model lenet-300-100 --density 0.3 --out embedded
  startsparse embed runs/fashion_dense-1a2b3c4d --density 0.1 --box 0 1 --out embedded --no-picture
  startsparse embed net.safetensors --model mlp widths=[20,10] input_shape=[1,4,4] --density 0.5 --assignment adaptive
  startsparse embed net.safetensors --model lenet-300-100 --density 0.3 --layer-densities inputs=0.5 fc3=0.8
  startsparse embed net.safetensors --model small-cnn --density 0.5 --input-shape 1 20 12
  startsparse embed net.safetensors --model lenet-300-100 --check embedded      trusts none of the files
"""

CERTIFICATE, SOURCE, PICTURE = "certificate.json", "source.safetensors", "success.png"


def configure(parser: argparse.ArgumentParser) -> None:
    """The arguments of this command."""
    parser.add_argument(
        "target", help="safetensors file (plain or compact) of the target, or a finished run's folder"
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="key=value",
        help="options of --model, such as widths=[20,10]",
    )
    parser.add_argument("--model", help="the target's architecture, by name (see: startsparse ls models)")
    parser.add_argument("--density", type=float, help="of the random source")
    parser.add_argument(
        "--layer-densities",
        nargs="+",
        default=[],
        metavar="LAYER=P",
        help="of single layers, the others have --density; the source's first layer is called inputs",
    )
    parser.add_argument("--delta", type=float, default=0.1, help="failure probability (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the source (default: %(default)s)")
    parser.add_argument(
        "--box", type=float, nargs=2, metavar=("LOW", "HIGH"), help="range of the inputs, if known"
    )
    parser.add_argument(
        "--input-shape",
        type=int,
        nargs="+",
        metavar="SIZE",
        help="of one input, such as 3 32 32: errors are measured on such inputs (default: the input_shape of the model "
        "or of the run, else one that the target takes)",
    )
    parser.add_argument(
        "--assignment", default="block", help="block, strict or adaptive (default: %(default)s)"
    )
    parser.add_argument("--out", default="embedded", help="folder of the results (default: %(default)s)")
    parser.add_argument("--no-picture", action="store_true", help="write no picture; it needs matplotlib")
    parser.add_argument(
        "--check", metavar="FOLDER", help="check the certificate in a folder against the target instead"
    )


def run(arguments: argparse.Namespace) -> int:
    """Embed and write, or check."""
    target, shape = _target(arguments.target, arguments.model, arguments.overrides)
    example = _example(arguments.input_shape or shape)
    if arguments.check:
        return _check(target, Path(arguments.check), example)
    return _embed(target, arguments, example)


def _example(shape: Sequence[int] | None) -> torch.Tensor | None:
    """A batch of inputs of a shape, if it is known: fewer of images."""
    if shape is None:
        return None
    if min(shape) < 1:
        raise ValueError(f"--input-shape: sizes are positive, got {' '.join(map(str, shape))}")
    return torch.zeros(256 if len(shape) == 1 else 16, *shape)


def _embed(target: nn.Module, arguments: argparse.Namespace, example: torch.Tensor | None) -> int:
    from startsparse import theory
    from startsparse.training.files import write_atomic

    if arguments.density is None and not arguments.layer_densities:
        raise ValueError("--density is missing: how dense the random source is, in (0, 1]")
    density = _densities(target, arguments.density, arguments.layer_densities)
    box = None if arguments.box is None else tuple(arguments.box)
    found = theory.embed(
        target, density=density, delta=arguments.delta, seed=arguments.seed, box=box,
        assignment=arguments.assignment, example_input=example,
    )  # fmt: skip
    out, said = Path(arguments.out), found.certificate
    out.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.contiguous() for name, tensor in found.model.state_dict().items()}
    write_atomic(out / SOURCE, save(tensors, {"source": json.dumps(said.source)}))
    said.save(out / CERTIFICATE)
    print(f"source of {said.source_positions:,} positions, about {said.source_edges:,} of them active")
    for name, layer in said.layers.items():
        print(f"  {name}: {layer['units']:,} of {layer['source_units']:,} units, {layer['edges']:,} edges")
    print(
        f"outputs differ by {said.error_measured:.2g}, by {said.error_bounded:.2g} at most for inputs in {said.box}"
    )
    written = [CERTIFICATE, SOURCE]
    if not arguments.no_picture:
        from startsparse.theory.picture import draw_success

        draw_success(target, found.source, out / PICTURE, delta=arguments.delta, signs=said.signs)
        written.append(PICTURE)
    print(f"{out}: {', '.join(written)}")
    return 0


def _densities(target: nn.Module, others: float | None, given: list[str]) -> float | dict[str, float] | None:
    """One density for all layers, or one for each."""
    if not given:
        return others
    from startsparse import theory
    from startsparse.names import nearest

    names = ["inputs", *theory.trace(target).layers]
    found = {} if others is None else dict.fromkeys(names, others)
    for pair in given:
        name, _, value = pair.partition("=")
        if name not in names:
            raise ValueError(
                f"--layer-densities: {name!r} is not a layer of the source: {nearest(name, names)}"
            )
        try:
            found[name] = float(value)
        except ValueError:
            raise ValueError(f"--layer-densities: LAYER=P was expected, P in (0, 1], got {pair!r}") from None
    return found


def _check(target: nn.Module, folder: Path, example: torch.Tensor | None) -> int:
    from startsparse import theory

    text = (folder / CERTIFICATE).read_text(encoding="utf-8")
    try:
        tensors = load_file(folder / SOURCE)
    except SafetensorError as error:
        raise ValueError(f"{folder / SOURCE} is not a sound safetensors file: {error}") from None
    for line in theory.verify(text, target, tensors, example_input=example):
        print(line)
    return 0


def _target(place: str, model: str | None, overrides: list[str]) -> tuple[nn.Module, Sequence[int] | None]:
    """The target with its weights, and the shape of one input where that is told."""
    path = Path(place)
    if path.is_dir():
        return _of_run(path)
    if not path.is_file():
        raise FileNotFoundError(2, "No such file", place)
    tensors = _tensors(path)
    if model is None:
        raise ValueError(f"--model is missing: the architecture of {path.name} (see: startsparse ls models)")
    from startsparse.training import models
    from startsparse.training.options import problems
    from startsparse.training.reading import override

    options = override({}, overrides)
    if wrong := problems("model", model, options):
        raise ValueError("; ".join(wrong))
    net = models.make(model, **options)
    try:
        net.load_state_dict(tensors)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:]]
        raise ValueError(f"{path.name} does not fit the model {model}: {' '.join(lines) or error}") from None
    return net.eval(), options.get("input_shape")


def _of_run(folder: Path) -> tuple[nn.Module, Sequence[int] | None]:
    import startsparse as ss
    from startsparse.training import build, recipe

    file = folder / "net.sparse.safetensors"
    if not file.exists():
        raise ValueError(f"{folder} is not the folder of a finished run: it has no {file.name}")
    made = recipe.load(folder / "recipe.yaml", [])
    return ss.load(file, build.model_of(made)).eval(), made.resolved()["model"].get("input_shape")


def _tensors(path: Path) -> dict[str, Any]:
    """Of a compact file, or of a plain one."""
    import startsparse as ss
    from startsparse.artifact.errors import FormatError

    try:
        return dict(ss.load(path))
    except FormatError as compact:
        try:
            found = load_file(path)
        except SafetensorError:
            if zipfile.is_zipfile(path):
                raise ValueError(
                    f"{path} looks like a file of torch.save: read it with torch.load and write its state dict with "
                    "safetensors.torch.save_file"
                ) from None
            raise ValueError(f"{path} is neither a compact nor a plain safetensors file: {compact}") from None
        return {name: tensor for name, tensor in found.items() if isinstance(tensor, torch.Tensor)}
