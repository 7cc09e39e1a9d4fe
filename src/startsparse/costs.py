"""Counted costs: where a layer's weights are used in a forward pass, and the FLOPs and bytes that follow."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .layers import Layer, is_conv1d
from .tables import size

_CANDIDATE = 12  # bytes: a score in float32 and a position


def uses_per_sample(
    model: nn.Module, layers: Mapping[str, Layer], example_input: Any
) -> tuple[dict[str, float], int]:
    """How often each weight is multiplied in the forward pass of one sample, and the samples of the example.

    Args:
        model: run once in evaluation mode without gradients; mode and random state are put back.
        layers: the layers to watch.
        example_input: a batch: a tensor, or a tuple or dict of arguments; its first tensor's first axis is the batch.

    Returns:
        (layer name -> multiply-adds per weight and sample, batch size).

    Raises:
        ValueError: the example is no batch, or the model's forward pass fails on it.

    Example:
        >>> from startsparse.layers import find
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Flatten(), nn.Linear(8 * 16, 10))
        >>> uses_per_sample(model, find(model), torch.zeros(2, 3, 4, 4))
        ({'0.weight': 16.0, '2.weight': 1.0}, 2)
    """
    totals = dict.fromkeys(layers, 0)

    def count(name: str, layer: Layer, module: nn.Module, given: Tensor, output: Any) -> None:
        totals[name] += _positions(layer, module, given, output)

    batch = _trace(model, layers, example_input, count)
    return {name: total / batch for name, total in totals.items()}, batch


def input_shapes(
    model: nn.Module, layers: Mapping[str, Layer], example_input: Any
) -> dict[str, tuple[int, ...]]:
    """The shape of each layer's (last) input in a forward pass; layers that are not called are left out."""
    shapes: dict[str, tuple[int, ...]] = {}

    def note(name: str, layer: Layer, module: nn.Module, given: Tensor, output: Any) -> None:
        shapes[name] = tuple(given.shape)

    _ = _trace(model, layers, example_input, note)
    return shapes


def _trace(
    model: nn.Module, layers: Mapping[str, Layer], example_input: Any, see: Callable[..., None]
) -> int:
    """One forward pass in evaluation mode; ``see(name, layer, module, input, output)`` at every use of a weight.

    Returns the batch.
    """
    plain = getattr(model, "_orig_mod", model)
    arguments, keywords = _arguments(example_input)
    first = next((t for t in [*arguments, *keywords.values()] if isinstance(t, Tensor)), None)
    if first is None or not first.dim() or not len(first):
        got = repr(example_input) if first is None else f"a tensor of shape {tuple(first.shape)}"
        raise ValueError(
            f"example_input must be a batch of one or more inputs, a tensor or a tuple or dict of arguments, got {got}"
        )
    batch = len(first)
    handles = []
    for name, layer in layers.items():
        for module in _users(plain, layer):

            def hook(module, inputs, kwargs, output, name=name, layer=layer):
                given = (
                    kwargs["query"]
                    if "query" in kwargs
                    else next(value for value in (*inputs, *kwargs.values()) if isinstance(value, Tensor))
                )
                see(name, layer, module, given, output)

            handles.append(module.register_forward_hook(hook, with_kwargs=True))
    modes = {module: module.training for module in plain.modules()}
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # it would call no module
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            plain.eval()(*arguments, **keywords)
    except Exception as error:
        raise ValueError(f"the model does not take example_input: {type(error).__name__}: {error}") from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode
    return batch


def _users(model: nn.Module, layer: Layer) -> list[nn.Module]:
    """The modules whose calls use a layer's weight: its owners, and attention for the projection it reads itself."""
    owners = [m for m in model.modules() if any(p is layer.parameter for p in m._parameters.values())]
    attentions = {id(m.out_proj): m for m in model.modules() if isinstance(m, nn.MultiheadAttention)}
    return [attentions.get(id(owner), owner) for owner in owners]


def _arguments(example_input: Any) -> tuple[tuple, dict]:
    if isinstance(example_input, Mapping):
        return (), dict(example_input)
    return (tuple(example_input), {}) if isinstance(example_input, tuple | list) else ((example_input,), {})


def _positions(layer: Layer, module: nn.Module, given: Tensor, output: Any) -> int:
    """Multiply-adds per weight of one call: how many places of the batch the weight is applied at."""
    if isinstance(module, nn.MultiheadAttention):
        return given.numel() // module.embed_dim
    if isinstance(module, nn.modules.conv._ConvTransposeNd) or is_conv1d(module):
        return given.numel() // layer.shape[0]
    if isinstance(module, nn.Linear):
        return given.numel() // layer.shape[1]
    if isinstance(module, nn.modules.conv._ConvNd):
        return output.numel() // layer.shape[0]
    return 0  # a look-up, such as an embedding


def inference_flops(active: Mapping[str, float], uses: Mapping[str, float]) -> float:
    """FLOPs of the sparse layers for one sample: a multiply and an add for each use of a live weight."""
    return sum(2 * active[name] * uses[name] for name in uses)


def training_flops(
    active: Mapping[str, float],
    sizes: Mapping[str, int],
    uses: Mapping[str, float],
    dense_gradient_share: float,
) -> float:
    """FLOPs of the sparse layers for one sample of a training step, averaged over a run.

    Forward, input gradient and weight gradient each use every live weight; on the share of steps that compute the
    dense weight gradient, that part uses every weight, inside a source too: no execution computes less of a layer there.

    References:
        Evci et al. 2020, appendix (FLOPs of RigL: (3 f_sparse dT + 2 f_sparse + f_dense) / (dT + 1)).
    """
    sparse, dense = inference_flops(active, uses), inference_flops(sizes, uses)
    return 3 * sparse + dense_gradient_share * (dense - sparse)


def training_bytes(shape: tuple[int, ...], element_size: int, num_states: int, has_source: bool) -> int:
    """Bytes of one layer during masked-dense training: weight, gradient, optimizer states, mask, its bits, source."""
    return math.prod(shape) * (element_size * (2 + num_states + 1) + 1 + int(has_source))


def sparse_training_bytes(count: int, num_states: int) -> int:
    """Bytes of one layer of ``count`` live weights during sparse training: values, gradient, states, and pattern."""
    return count * (4 * (2 + num_states) + 11)


@dataclass(frozen=True)
class Gradients:
    """Dense gradients that a method asks for, besides the memory of the layers.

    Attributes:
        bytes: of one accumulator a layer: held at the steps that need it.
        steps: of the run that need it; None if its length is unknown.
        kept: whether it is carried from one step to the next, as in a window of several steps.
        reduced: bytes of the candidates that a gradient is reduced to when it arrives, of all layers, where a step is one
            micro-batch of one process; None where the accumulators are needed in any case.
    """

    bytes: int
    steps: int | None
    kept: bool
    reduced: int | None = None

    def __str__(self) -> str:
        when = "at update steps" if self.steps is None else f"at {self.steps:,} steps"
        if self.reduced is not None:
            return (
                f"dense gradients: {size(self.reduced)} of candidates {when} (at most {size(self.bytes)} with several "
                "micro-batches or processes)"
            )
        kept = ", kept from step to step" if self.kept else ""
        return f"dense gradients: at most {size(self.bytes)} {when}{kept}"


class _WithCount:
    """A layer's view, but with the live weights that training begins with."""

    def __init__(self, view: Any, count: int):
        self._view, self.num_active = view, count

    def __getattr__(self, name: str) -> Any:
        return getattr(self._view, name)

    def num_growable(self, returning: Tensor) -> int:
        return self.capacity - self.num_active + len(returning)


def dense_gradients(
    method: Any,
    size_of_one: int,
    total_steps: int | None,
    views: Mapping[str, Any],
    counts: Mapping[str, int],
    masked: bool,
) -> Gradients | None:
    """What a method's dense gradients need; None if it asks for none.

    Args:
        method: says which steps need them, and what they may be reduced to.
        size_of_one: bytes of one gradient of all layers.
        total_steps: length of the run, or None.
        views: the layers as a method sees them.
        counts: layer name -> live weights.
        masked: whether all layers run masked.
    """
    looked_at = range(10_000 if total_steps is None else total_steps)
    wanted = [step for step in looked_at if method.wants_gradient(step, total_steps)]
    if not wanted:
        return None
    kept = any(method.gradient_carry(step, total_steps) for step in wanted)
    growth = None
    if masked and not kept:
        begun = {name: _WithCount(view, counts[name]) for name, view in views.items()}
        growth = method.reduces_to(begun, wanted[0], total_steps)
    reduced = None
    if growth is not None:
        most = sum(growth.most.values())
        found = most if growth.total is None else min(most, 2 * growth.total)
        reduced = _CANDIDATE * found + 4 * sum(counts.values())
    return Gradients(size_of_one, None if total_steps is None else len(wanted), kept, reduced)
