"""Models of other libraries, by ``transformers:NAME`` and ``timm:NAME``, where these are installed."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from startsparse.names import nearest
from startsparse.training.models.shapes import image_shape

PREFIXES = {
    "transformers:": "any configuration of transformers, such as transformers:vit or transformers:llama",
    "timm:": "any model of timm, such as timm:resnet18",
}


def get(name: str) -> Callable[..., nn.Module]:
    """The builder behind a prefixed name; nothing is imported until it is called."""
    library, _, model = name.partition(":")
    if not model:
        raise ValueError(
            f"unknown model {name!r}: {library}: is followed by a name ({PREFIXES[library + ':']})"
        )

    def from_transformers(
        config: Mapping[str, Any] | None = None,
        pretrained: bool = False,
        input_shape: Sequence[int] = (3, 32, 32),
        classes: int = 10,
    ) -> nn.Module:
        return _transformers(model, dict(config or {}), pretrained, input_shape, classes)

    def from_timm(
        config: Mapping[str, Any] | None = None,
        pretrained: bool = False,
        input_shape: Sequence[int] = (3, 32, 32),
        classes: int = 10,
    ) -> nn.Module:
        return _timm(model, dict(config or {}), pretrained, input_shape, classes)

    return from_transformers if library == "transformers" else from_timm


class Logits(nn.Module):
    """A model of ``transformers`` that takes a tensor and returns a tensor, as all others here do."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) -> (N, classes), or tokens (N, T) -> (N, T, classes)."""
        return self.model(x).logits


def _transformers(
    name: str, config: dict[str, Any], pretrained: bool, input_shape: Sequence[int], classes: int
) -> nn.Module:
    library = _import("transformers", "transformers:" + name)
    is_text = len(input_shape) == 1
    if is_text:
        fitted = {"vocab_size": classes, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
        fitted |= {
            "max_position_embeddings": input_shape[0],
            "use_cache": False,
            "tie_word_embeddings": False,
        }
    else:
        channels, height, width = image_shape("transformers:" + name, input_shape)
        fitted = {"num_labels": classes, "num_channels": channels, "image_size": (height, width)}
        if height == width:
            fitted["image_size"] = height
    chosen = fitted | config
    known = library.CONFIG_MAPPING
    try:
        if "/" in name:
            settings = library.AutoConfig.from_pretrained(name, **chosen)
        elif pretrained:
            raise ValueError(
                f"transformers:{name} is a configuration without weights: pretrained needs a repository, owner/name"
            )
        elif name in known:
            settings = library.AutoConfig.for_model(name, **chosen)
        else:
            raise ValueError(f"unknown model 'transformers:{name}': {nearest(name, sorted(known))}")
    except OSError as error:
        raise ValueError(_unreachable("transformers:" + name, error)) from error
    automatic = library.AutoModelForCausalLM if is_text else library.AutoModelForImageClassification
    try:
        if pretrained:
            extra: dict[str, Any] = {"config": settings, "ignore_mismatched_sizes": True}
            return Logits(automatic.from_pretrained(name, **extra))
        return Logits(automatic.from_config(settings))
    except OSError as error:
        raise ValueError(_unreachable("transformers:" + name, error)) from error
    except (ValueError, TypeError, AttributeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        kind = "next-token" if is_text else "image classification"
        raise ValueError(
            f"transformers:{name} makes no {kind} model of this configuration: {reason}"
        ) from error


def _timm(
    name: str, config: dict[str, Any], pretrained: bool, input_shape: Sequence[int], classes: int
) -> nn.Module:
    library = _import("timm", "timm:" + name)
    channels, height, width = image_shape("timm:" + name, input_shape)
    if not library.is_model(name):
        raise ValueError(f"unknown model 'timm:{name}': {nearest(name, library.list_models())}")
    chosen = {"num_classes": classes, "in_chans": channels} | config
    try:
        return library.create_model(name, pretrained=pretrained, img_size=(height, width), **chosen)
    except TypeError:  # most convolutional nets take images of any size and no such argument
        return library.create_model(name, pretrained=pretrained, **chosen)
    except OSError as error:
        raise ValueError(_unreachable("timm:" + name, error)) from error


def _import(library: str, model: str) -> ModuleType:
    try:
        return importlib.import_module(library)
    except ImportError as error:
        missing = (error.name or library).partition(".")[0]
        raise ModuleNotFoundError(
            f"the model {model} needs the package {missing}: pip install '{missing}'", name=missing
        ) from error
    except RuntimeError as error:  # a torchvision that was built for another torch
        raise RuntimeError(
            f"the model {model} needs {library}, which does not import here: {error}. "
            f"Install the torchvision that was built for this torch"
        ) from error


def _unreachable(name: str, error: Exception) -> str:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return (
        f"{name} could not be had: {reason} Fetch it once where there is a network (huggingface-cli download), "
        f"or take a configuration that comes with the library, such as transformers:vit"
    )
