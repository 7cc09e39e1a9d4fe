"""Linear and Conv2d whose weight is the vector of its live values: no dense tensor, anywhere.

A module is turned in place (its class changes, the object stays), so hooks, aliases and containers keep working. Its
``weight`` is then the values in the kernels' order, its ``pattern`` says where they are. A state_dict holds the values
in row-major order and their positions; a plain dense weight can be loaded as well.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..kernels import Pattern, sparse_conv2d, sparse_linear
from ..layers import check_module
from ..names import plain

_TURN_BACK = "turn the model back first, with sparse.detach() or ss.densify_execution(model)"


class _Sparse(nn.Module):
    """What both share: the pattern, and how it is saved and loaded."""

    weight: nn.Parameter
    pattern: Tensor
    dense_shape: tuple[int, ...]
    groups: int = 1

    @property
    def num_weights(self) -> int:
        """Positions of the dense weight."""
        return math.prod(self.dense_shape)

    def live(self) -> Pattern:
        """The live positions."""
        rows = self.dense_shape[0]
        cols = math.prod(self.dense_shape[1:])
        return Pattern(self.pattern, rows, cols, self.groups, self.weight.numel())

    def dense_weight(self) -> Tensor:
        """The weight with its zeros, of the dense shape: a new tensor."""
        return self.live().dense(self.weight.detach(), self.dense_shape)

    def __prepare_scriptable__(self) -> nn.Module:
        """What ``torch.jit.script`` asks for.

        Raises:
            RuntimeError: says what to script instead.
        """
        raise RuntimeError(
            f"torch.jit.script cannot read a sparse layer ({self.extra_repr()}): use torch.jit.trace, torch.export or "
            f"torch.compile, or {_TURN_BACK}"
        )

    def put(self, pattern: Pattern, values: Tensor) -> None:
        """Take over a pattern and values in its order; the parameter object stays, its size may change."""
        if self.weight.numel() == values.numel():
            self.weight.data.copy_(values)
        else:
            self.weight.grad = None
            # A loss that is still held keeps the gradient accumulator of the old size alive; passing through another
            # dtype makes torch forget it.
            self.weight.data = values.new_empty(0, dtype=torch.float64)
            self.weight.data = values
        self.pattern = pattern.blob

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """What ``to``, ``half`` and ``to_empty`` go through: refused where nothing could be computed afterwards.

        Raises:
            ValueError: the layer would leave the CPU, float32 or its positions behind. It is as it was.
        """
        with torch.no_grad():
            weight, pattern = fn(self.weight.detach()), fn(self.pattern)
        computes = weight.dtype == torch.float32 and weight.device.type == "cpu"
        if not computes or not (pattern is self.pattern or torch.equal(pattern, self.pattern)):
            wanted = "lose its positions" if computes else f"become {weight.dtype} on {weight.device}"
            raise ValueError(
                f"a sparse layer ({self.extra_repr()}) computes in float32 on the CPU and cannot {wanted}: {_TURN_BACK}; "
                "for mixed precision leave it as it is and use torch.autocast"
            )
        return super()._apply(fn, recurse)

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        live = self.live()
        destination[prefix + "weight"] = self.weight.detach()[live.order()]
        positions = live.positions()
        narrow = self.num_weights < 2**31
        destination[prefix + "positions"] = positions.to(torch.int32) if narrow else positions

    def _load_from_state_dict(
        self,
        state_dict: dict,
        prefix: str,
        metadata: Any,
        strict: bool,
        missing: list,
        unexpected: list,
        errors: list,
    ) -> None:
        weight, positions = state_dict.get(prefix + "weight"), state_dict.get(prefix + "positions")
        rest = {k: v for k, v in state_dict.items() if k not in (prefix + "weight", prefix + "positions")}
        names = list(missing)
        super()._load_from_state_dict(rest, prefix, metadata, strict, missing, unexpected, errors)
        if weight is None:
            return
        missing[:] = [name for name in missing if name in names or name != prefix + "weight"]
        try:
            self.load_weight(weight, positions)
        except ValueError as error:
            errors.append(f"{prefix}weight: {error}")

    @torch.no_grad()
    def load_weight(self, weight: Tensor, positions: Tensor | None = None) -> None:
        """Take over a dense weight at the live positions, or row-major values with their positions.

        Raises:
            ValueError: neither fits this layer.
        """
        if positions is None:
            if tuple(weight.shape) != self.dense_shape:
                raise ValueError(
                    f"a dense weight of shape {self.dense_shape} is needed, not {tuple(weight.shape)}"
                )
            values = self.live().take_from(weight.to(self.weight))
            outside = int(weight.count_nonzero()) - int(values.count_nonzero())
            if outside and not self.__dict__.get("attached"):
                raise ValueError(f"{outside} weights are not zero where this layer has no live weight")
            self.weight.copy_(values)
            if outside:  # they belong to the masks of the same checkpoint, which may be loaded later
                self.__dict__["loaded_dense"] = weight.detach().clone()
            return
        if positions.dim() != 1 or positions.shape != weight.shape:
            raise ValueError(f"{tuple(weight.shape)} values for {tuple(positions.shape)} positions")
        self.__dict__.pop("loaded_dense", None)
        old = self.live()
        new = Pattern.build(positions, old.rows, old.cols, old.groups, math.prod(self.dense_shape[2:]))
        values = torch.empty(positions.numel(), dtype=self.weight.dtype)
        values[new.order()] = weight.to(self.weight)
        self.put(new, values)


class SparseLinear(_Sparse):
    """``nn.Linear`` on the live weights of a layer."""

    in_features: int
    out_features: int
    bias: nn.Parameter | None

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in_features] -> [..., out_features]."""
        if _jit_traces():
            return torch.ops.startsparse.sparse_linear(
                x, self.weight, self.bias, self.pattern, self.out_features
            )
        try:
            return sparse_linear(x, self.weight, self.pattern, self.out_features, self.bias)
        except ValueError as error:
            if x.dim() and x.shape[-1] != self.in_features:
                raise ValueError(
                    f"startsparse: x must be [..., {self.in_features}] for this layer, not {list(x.shape)}"
                ) from error
            raise

    def extra_repr(self) -> str:
        live, total = self.weight.numel(), self.num_weights
        return f"in_features={self.in_features}, out_features={self.out_features}, live={live:,} of {total:,}"


class SparseConv2d(_Sparse):
    """``nn.Conv2d`` on the live weights of a layer."""

    in_channels: int
    out_channels: int
    bias: nn.Parameter | None
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, channels, height, width] -> [batch, out_channels, out height, out width]."""
        batched = x if x.dim() == 4 else x.unsqueeze(0)
        if _jit_traces():
            sizes = self.kernel_size, self.stride, self.padding, self.dilation, self.groups
            y = torch.ops.startsparse.sparse_conv2d(
                batched, self.weight, self.bias, self.pattern, self.out_channels, *sizes
            )
            return y if x.dim() == 4 else y.squeeze(0)
        try:
            y = sparse_conv2d(
                batched,
                self.weight,
                self.pattern,
                self.out_channels,
                self.kernel_size,
                self.bias,
                stride=self.stride,
                padding=self.padding,
                dilation=self.dilation,
                groups=self.groups,
            )
        except ValueError as error:
            if batched.dim() == 4 and batched.shape[1] != self.in_channels:
                raise ValueError(
                    f"startsparse: x must be [batch, {self.in_channels}, height, width] for this layer, not {list(x.shape)}"
                ) from error
            raise
        return y if x.dim() == 4 else y.squeeze(0)

    def extra_repr(self) -> str:
        out, inside, *kernel = self.dense_shape
        live, total = self.weight.numel(), self.num_weights
        return f"{inside * self.groups}, {out}, kernel_size={tuple(kernel)}, live={live:,} of {total:,}"


def _jit_traces() -> bool:
    """Whether ``torch.jit.trace`` looks on: it sees registered operators alone, all else only as memory being made.

    Raises:
        RuntimeError: for an exporter to ONNX, which knows no sparse layers.
    """
    if torch.compiler.is_compiling() or not torch._C._is_tracing():
        return False
    if torch.onnx.is_in_onnx_export():
        raise RuntimeError(f"ONNX has no sparse layers: {_TURN_BACK}")
    return True


_SPARSE: dict[type, type[_Sparse]] = {nn.Linear: SparseLinear, nn.Conv2d: SparseConv2d}
_PLAIN = {sparse: plain for plain, sparse in _SPARSE.items()}


@torch.no_grad()
def to_sparse(module: nn.Module, shape: tuple[int, ...], positions: Tensor, values: Tensor) -> nn.Parameter:
    """Turn a Linear or Conv2d sparse in place; returns its new weight parameter.

    Args:
        module: of exactly one of these types.
        shape: of its dense weight.
        positions: int64, rising, row-major, (num_active,).
        values: of the live weights in the same order.
    """
    groups = getattr(module, "groups", 1)
    pattern = Pattern.build(positions, shape[0], math.prod(shape[1:]), groups, math.prod(shape[2:]))
    ordered = torch.empty(len(positions), dtype=torch.float32)
    ordered[pattern.order()] = values.float()
    old = module._parameters["weight"]
    parameter = nn.Parameter(ordered, requires_grad=old is None or old.requires_grad)
    _keep_attributes(old, parameter)
    module._parameters["weight"] = parameter
    module.__class__ = _SPARSE[type(module)]
    module.__dict__["dense_shape"] = shape
    module.register_buffer("pattern", pattern.blob, persistent=False)
    return parameter


@torch.no_grad()
def to_dense(module: nn.Module) -> nn.Parameter:
    """The inverse of ``to_sparse``: a plain module again, zeros in place; returns its dense weight parameter."""
    assert isinstance(module, _Sparse)
    dense = nn.Parameter(module.dense_weight(), requires_grad=module.weight.requires_grad)
    _keep_attributes(module.weight, dense)
    module.__class__ = _PLAIN[type(module)]
    del module._buffers["pattern"], module.dense_shape
    for key in ("loaded_dense", "attached"):
        _ = module.__dict__.pop(key, None)
    module._parameters["weight"] = dense
    return dense


def _keep_attributes(old: Tensor | None, new: nn.Parameter) -> None:
    """What somebody wrote onto a parameter, such as a group it belongs to, is on the one in its place, too."""
    for key, value in ({} if old is None else vars(old)).items():
        setattr(new, key, value)


def refuse_sparse(model: nn.Module) -> None:
    """Refuse a model that has layers that keep live values alone.

    Raises:
        TypeError: it is no model.
        ValueError: names the first such layer.
    """
    check_module(model)
    for name, module in model.named_modules():
        if is_sparse(module):
            weight = plain(f"{name}.weight" if name else "weight")
            raise ValueError(
                f"{weight} runs sparse already: turn the model back with ss.densify_execution(model) first"
            )


def is_sparse(module: nn.Module) -> bool:
    """Whether a module keeps live values alone."""
    return isinstance(module, _Sparse)
