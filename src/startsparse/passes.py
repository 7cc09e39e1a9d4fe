"""Passes through a model that score its weights: gradients, Hessian-gradient products, synaptic flow.

Nothing of the model changes: parameters and buffers are replaced by copies for the pass, the random generators, the
gradients and the train and eval flags are as before.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from .layers import Layer

_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.instancenorm._InstanceNorm)


class Passes:
    """The passes a method may ask for.

    Args:
        model: as the user trains it.
        layers: the sparse ones; scores are of their weights.
        data: batches ``(inputs, target)``; inputs a tensor, a tuple of arguments or a dict of named ones. One batch may
            be given as it is.
        loss_fn: ``loss_fn(model(inputs), target)``, a scalar.
        example_input: inputs of one batch.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, Layer],
        data: Any = None,
        loss_fn: Callable | None = None,
        example_input: Any = None,
    ):
        self._model, self._layers = _unwrapped(model), layers
        self._data, self._loss_fn, self._example = data, loss_fn, example_input
        owners = {(id(layer.module), layer.attribute): name for name, layer in layers.items()}
        self._raw: dict[str, str] = {}  # the model's name of a parameter -> the layer's
        for prefix, module in self._model.named_modules():
            for key in module._parameters:
                if (id(module), key) in owners:
                    self._raw[f"{prefix}.{key}" if prefix else key] = owners[id(module), key]

    def batches(self, count: int) -> list[tuple[Any, Tensor]]:
        """The first ``count`` batches of ``data``.

        Raises:
            ValueError: there are fewer, or they are not pairs.
        """
        pair = isinstance(self._data, tuple | list) and len(self._data) == 2
        single = pair and not isinstance(self._data[0], tuple | list)
        found = [self._data] if single else list(islice(iter(self._data), count))
        if len(found) < count:
            raise ValueError(f"data= holds {len(found)} batches, {count} are needed")
        for batch in found:
            if not isinstance(batch, tuple | list) or len(batch) != 2:
                raise ValueError(
                    f"data= must give batches (inputs, target), got {type(batch).__name__} of "
                    f"{len(batch) if hasattr(batch, '__len__') else '?'}"
                )
        return [(inputs, target) for inputs, target in found]

    def gradients(
        self, masks: Mapping[str, Tensor], batches: Iterable[tuple[Any, Tensor]]
    ) -> dict[str, Tensor]:
        """Dense gradient of the loss at the masked weights, summed over batches: name -> the weight's shape."""
        with self._quiet(train=True), self._weights(masks) as (weights, tensors):
            total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
            for inputs, target in batches:
                for name, gradient in self._gradient(weights, tensors, inputs, target, 1.0, False).items():
                    total[name] += gradient
            return _over_ranks(total)

    def hessian_gradients(
        self, masks: Mapping[str, Tensor], batches: Iterable[tuple[Any, Tensor]], temperature: float
    ) -> dict[str, Tensor]:
        """Product of the loss' Hessian with its gradient, each batch in two halves: name -> the weight's shape.

        Args:
            masks: bool, of the weights' shapes: where they are not zero.
            batches: each of two or more samples.
            temperature: the model's output is divided by it.
        """
        halves = [half for inputs, target in batches for half in _halves(inputs, target)]
        with (
            self._quiet(train=True),
            self._weights(masks) as (weights, tensors),
            sdpa_kernel(SDPBackend.MATH),
        ):
            gradient = {name: torch.zeros_like(weight) for name, weight in weights.items()}
            for inputs, target in halves:
                for name, part in self._gradient(
                    weights, tensors, inputs, target, temperature, False
                ).items():
                    gradient[name] += part
            gradient = _over_ranks(gradient)
            product = {name: torch.zeros_like(weight) for name, weight in weights.items()}
            for inputs, target in halves:
                parts = self._gradient(weights, tensors, inputs, target, temperature, True)
                along = torch.stack([(gradient[name] * part).sum() for name, part in parts.items()]).sum()
                if along.grad_fn is None:
                    continue  # nothing of the loss is curved
                for name, part in _grad(along, weights, False).items():
                    product[name] += part
            return _over_ranks(product)

    def synaptic_flow(self, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """abs(weight) times the gradient of R, the sum of the outputs for an input of ones, all parameters absolute.

        In float64. Batch norms use their running statistics, other norms only scale and shift, dropout is off;
        integer inputs (tokens) are taken as they are.
        """
        with (
            self._quiet(train=False),
            self._weights(masks, absolute=True) as (weights, tensors),
            self._linear_norms(),
        ):
            args, kwargs = _arguments(_ones(self._example))
            output = torch.func.functional_call(self._model, tensors, args, kwargs, tie_weights=False)
            total = torch.stack([part.sum() for part in _float_tensors(output)]).sum()
            if not bool(total.isfinite()):
                raise ValueError(
                    "the synaptic flow of this model is not finite even in float64: scale its weights down"
                )
            gradients = _grad(total, weights, False)
            return {name: (weight.detach() * gradients[name]).abs() for name, weight in weights.items()}

    # -- how a pass leaves everything as it was ------------------------------------------------------------------

    def _gradient(
        self, weights, tensors, inputs, target, temperature: float, graph: bool
    ) -> dict[str, Tensor]:
        args, kwargs = _arguments(inputs)
        output = torch.func.functional_call(self._model, tensors, args, kwargs, tie_weights=False)
        loss = self._loss_fn(output if temperature == 1.0 else output / temperature, target)  # type: ignore[misc]
        if not isinstance(loss, Tensor) or loss.dim() != 0:
            raise ValueError("loss_fn(model(inputs), target) must return one number, a scalar tensor")
        return _grad(loss, weights, graph)

    @contextlib.contextmanager
    def _weights(
        self, masks: Mapping[str, Tensor], absolute: bool = False
    ) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
        """The masked weights that are differentiated, and all tensors of the model for the pass."""
        tensors: dict[str, Tensor] = {}
        weights: dict[str, Tensor] = {}
        made: dict[int, Tensor] = {}  # tied parameters stay tied
        named = [  # a module that is listed twice once: functional_call would not put its tensors back
            (f"{prefix}.{key}" if prefix else key, tensor)
            for prefix, module in self._model.named_modules()
            for key, tensor in (*module._parameters.items(), *module._buffers.items())
            if tensor is not None
        ]
        for raw, tensor in named:
            if id(tensor) not in made:
                copied = tensor.detach().clone()
                if absolute and copied.is_floating_point():
                    copied = copied.double().abs()
                if raw in self._raw:
                    name = self._raw[raw]
                    copied = (copied * masks[name].view(copied.shape)).requires_grad_()
                    weights[name] = copied
                made[id(tensor)] = copied
            tensors[raw] = made[id(tensor)]
        yield {name: weights[name] for name in self._layers}, tensors

    @contextlib.contextmanager
    def _quiet(self, train: bool) -> Iterator[None]:
        flags = [(module, module.training) for module in self._model.modules()]
        devices = list({p.device.index for p in self._model.parameters() if p.device.type == "cuda"})
        try:
            _ = self._model.train(train)
            with torch.random.fork_rng(devices=devices), torch.enable_grad():
                yield
        finally:
            for module, flag in flags:
                module.training = flag

    @contextlib.contextmanager
    def _linear_norms(self) -> Iterator[None]:
        norms = [module for module in self._model.modules() if isinstance(module, _NORMS)]
        try:
            for module in norms:
                module.forward = lambda x, module=module: _affine(module, x)  # type: ignore[method-assign]
            yield
        finally:
            for module in norms:
                del module.forward


def _unwrapped(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel and torch.compile."""
    while True:
        inner = model._modules.get("_orig_mod")
        if inner is None and isinstance(model, nn.parallel.DistributedDataParallel):
            inner = model.module
        if inner is None:
            return model
        model = inner


def _over_ranks(signal: dict[str, Tensor]) -> dict[str, Tensor]:
    """The sum over all ranks, so that each of them scores alike."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        for tensor in signal.values():
            torch.distributed.all_reduce(tensor)
    return signal


def _grad(scalar: Tensor, weights: Mapping[str, Tensor], graph: bool) -> dict[str, Tensor]:
    """Gradients by name; zeros where a weight has no part in the scalar."""
    found = torch.autograd.grad(scalar, list(weights.values()), create_graph=graph, allow_unused=True)
    return {
        name: torch.zeros_like(weight) if gradient is None else gradient
        for (name, weight), gradient in zip(weights.items(), found, strict=True)
    }


def _arguments(inputs: Any) -> tuple[tuple, dict]:
    if isinstance(inputs, dict):
        return (), dict(inputs)
    return (tuple(inputs), {}) if isinstance(inputs, tuple | list) else ((inputs,), {})


def _map(inputs: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(inputs, Tensor):
        return change(inputs)
    if isinstance(inputs, dict):
        return {key: _map(value, change) for key, value in inputs.items()}
    return tuple(_map(value, change) for value in inputs) if isinstance(inputs, tuple | list) else inputs


def _ones(inputs: Any) -> Any:
    return _map(
        inputs, lambda x: torch.ones_like(x[:1], dtype=torch.float64) if x.is_floating_point() else x[:1]
    )


def _halves(inputs: Any, target: Any) -> list[tuple[Any, Any]]:
    """A batch in two halves; one sample cannot be halved."""
    sizes = {len(x) for x in _float_tensors(target, every=True)}
    half = min(sizes, default=0) // 2
    if half == 0:
        raise ValueError("a batch of data= must hold two samples or more: it is scored in two halves")
    return [
        (_map(inputs, lambda x: x[:half]), _map(target, lambda x: x[:half])),
        (_map(inputs, lambda x: x[half:]), _map(target, lambda x: x[half:])),
    ]


def _float_tensors(output: Any, every: bool = False) -> list[Tensor]:
    """The tensors in an output of any structure."""
    if isinstance(output, Tensor):
        return [output] if every or output.is_floating_point() else []
    parts = (
        output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple | list) else ()
    )
    return [tensor for part in parts for tensor in _float_tensors(part, every)]


def _affine(module: nn.Module, x: Tensor) -> Tensor:
    """What is left of a norm without its statistics."""
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    shape = (
        [-1] + [1] * (x.dim() - 2)
        if isinstance(module, nn.GroupNorm) or "Instance" in type(module).__name__
        else None
    )
    if weight is not None:
        x = x * (weight if shape is None else weight.view(shape))
    return x if bias is None else x + (bias if shape is None else bias.view(shape))
