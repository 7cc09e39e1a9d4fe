"""Which parameters of a model may be sparse: the layers, found by type and chosen by name."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from .names import matches, nearest, plain

_ATTENTION = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


@dataclass(frozen=True)
class Geometry:
    """How a weight's positions connect units: which axis is out, which is in, and in how many groups.

    Ordinary weights are (out, in / groups, *kernel), transposed convolutions (in, out / groups, *kernel), as are the
    (in, out) ones of ``Conv1D`` of transformers.
    """

    transposed: bool = False
    groups: int = 1


ORDINARY = Geometry()


@dataclass(frozen=True)
class Layer:
    """One weight that may be sparse: its plain parameter name, its owner and its geometry."""

    name: str
    module: nn.Module
    attribute: str
    shape: tuple[int, ...]
    geometry: Geometry = ORDINARY

    @property
    def parameter(self) -> nn.Parameter:
        """The parameter as the module holds it now."""
        return cast(nn.Parameter, self.module._parameters[self.attribute])


def find(model: nn.Module, layers: str | Sequence[str] | None = None) -> dict[str, Layer]:
    """The layers of a model that may be sparse, in module order.

    Args:
        model: any module, also under DistributedDataParallel or torch.compile.
        layers: None for the default, every Linear (also ``Conv1D`` of transformers), convolution and attention
            projection weight, first and last included; or parameter names, module names or globs over them (any parameter of two or more dimensions
            may be named). A pattern that begins with ``!`` excludes; exclusions alone start from the default.

    Raises:
        TypeError: the model is no module, or ``layers`` no names.
        ValueError: a pattern matches nothing or a vector, nothing is left, a parameter is not initialised yet, or a
            weight is of integers.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2))
        >>> list(find(model)), list(find(model, "!0"))
        (['0.weight', '2.weight'], ['2.weight'])
    """
    check_module(model)
    patterns = _patterns(layers)
    candidates, default = _candidates(model)
    names = _names(model, candidates)
    chosen = set() if any(not p.startswith("!") for p in patterns) else set(default)
    for pattern in patterns:
        found = {names[name] for name in matches(pattern.removeprefix("!"), names)}
        if not found:
            vectors = matches(
                pattern.removeprefix("!"), [plain(name) for name, _ in model.named_parameters()]
            )
            reason = (
                f"only matches vectors ({', '.join(vectors)})"
                if vectors
                else "matches no parameter of the model"
            )
            raise ValueError(
                f"layers: {pattern!r} {reason}; {nearest(pattern.removeprefix('!'), list(names))}"
            )
        chosen = chosen - found if pattern.startswith("!") else chosen | found
    if not candidates:
        raise ValueError(
            "no layer is left to be sparse: the model has no parameter of two or more dimensions"
        )
    if not chosen:
        asked = (
            f"layers={layers!r}"
            if patterns
            else "there is no Linear, convolution or attention; name others in layers="
        )
        raise ValueError(f"no layer is left to be sparse: {asked}, {nearest('', list(candidates))}")
    for name in chosen:
        dtype = candidates[name].parameter.dtype
        if not (dtype.is_floating_point or dtype.is_complex):
            raise ValueError(
                f"{name} is {dtype}: only floating-point weights can be sparse, leave it out with layers=['!{name}']"
            )
    return {name: layer for name, layer in candidates.items() if name in chosen}


def _patterns(layers: Any) -> list[str]:
    if isinstance(layers, Mapping):
        raise TypeError(
            f"layers must be names or globs such as 'fc*', got a {type(layers).__name__}: densities by layer are the "
            "method's distribution="
        )
    several = isinstance(layers, Iterable) and not isinstance(layers, str | nn.Module)
    patterns: list[Any] = [] if layers is None else [*layers] if several else [layers]
    if not all(isinstance(pattern, str) for pattern in patterns):
        raise TypeError(f"layers must be names or globs such as 'fc*', got {layers!r}")
    return patterns


def left_dense(model: nn.Module, chosen: dict[str, Layer]) -> dict[str, int]:
    """Parameters of two or more dimensions that were not chosen: name -> number of weights."""
    return {
        name: layer.parameter.numel() for name, layer in _candidates(model)[0].items() if name not in chosen
    }


def computed(model: nn.Module, chosen: dict[str, Layer]) -> list[str]:
    """Parameters that were not chosen and that a Linear or convolution computes its weight from.

    By parametrizations, or as ``torch.nn.utils.weight_norm`` and ``torch.nn.utils.prune`` do.
    """
    others = _candidates(model)[0]
    return [
        name
        for name in left_dense(model, chosen)
        if "parametrizations." in name
        or (
            isinstance(others[name].module, nn.Linear | _ConvNd)
            and "weight" not in others[name].module._parameters
        )
    ]


def warn_of_dense(model: nn.Module, chosen: dict[str, Layer], stacklevel: int) -> None:
    """Say which weights stay dense by default although one would think that they are chosen."""
    if parametrized := computed(model, chosen):
        warnings.warn(
            f"{', '.join(parametrized)} stay dense: the weights of these layers are computed from them; remove the "
            "parametrization, or leave it at that with layers=",
            stacklevel=stacklevel + 1,
        )
    others = {name: layer for name, layer in _candidates(model)[0].items() if name not in chosen}
    recurrent = [n for n, one in others.items() if isinstance(one.module, nn.RNNBase | nn.RNNCellBase)]
    if recurrent:
        warnings.warn(
            f"{', '.join(recurrent)} stay dense: recurrent weights are sparse where layers= names them",
            stacklevel=stacklevel + 1,
        )


def check_module(model: object) -> None:
    """Refuse what is no model.

    Raises:
        TypeError: it is no ``torch.nn.Module``.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")


def _candidates(model: nn.Module) -> tuple[dict[str, Layer], list[str]]:
    """Every weight that may be sparse, and the names of those that are by default. Tied weights appear once."""
    found: dict[str, Layer] = {}
    default: list[str] = []
    seen: dict[int, str] = {}
    for module_name, module in model.named_modules():
        for attribute, parameter in module._parameters.items():
            if parameter is None:
                continue
            name = plain(f"{module_name}.{attribute}" if module_name else attribute)
            if isinstance(parameter, nn.UninitializedParameter):
                raise ValueError(
                    f"{name} is not initialised yet: run the model once before it is made sparse"
                )
            if id(parameter) in seen and _by_default(module, attribute):
                default.append(seen[id(parameter)])  # held by a layer, though another module names it first
            if parameter.dim() < 2 or parameter.numel() == 0 or id(parameter) in seen:
                continue
            seen[id(parameter)] = name
            found[name] = Layer(name, module, attribute, tuple(parameter.shape), _geometry(module, attribute))
            if _by_default(module, attribute):
                default.append(name)
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)}
    return found, [name for name in default if id(found[name].parameter) not in embeddings]


def _names(model: nn.Module, candidates: dict[str, Layer]) -> dict[str, str]:
    """Every name that a candidate goes by: its own, and those that a tied or shared one has besides."""
    own = {id(layer.parameter): name for name, layer in candidates.items()}
    others = {plain(n): own.get(id(p)) for n, p in model.named_parameters(remove_duplicate=False)}
    return dict(zip(candidates, candidates, strict=True)) | {n: name for n, name in others.items() if name}


def is_conv1d(module: nn.Module) -> bool:
    """Whether a module is ``Conv1D`` of transformers: a linear layer whose weight is (in, out)."""
    return any(
        kind.__name__ == "Conv1D" and kind.__module__.startswith("transformers.")
        for kind in type(module).__mro__
    )


def _by_default(module: nn.Module, attribute: str) -> bool:
    if isinstance(module, nn.Linear | _ConvNd) or is_conv1d(module):
        return attribute == "weight"
    return isinstance(module, nn.MultiheadAttention) and attribute in _ATTENTION


def _geometry(module: nn.Module, attribute: str) -> Geometry:
    if isinstance(module, _ConvNd) and attribute == "weight":
        return Geometry(transposed=isinstance(module, _ConvTransposeNd), groups=module.groups)
    if is_conv1d(module) and attribute == "weight":
        return Geometry(transposed=True)
    return ORDINARY
