"""What ``plan`` returns: what will be, as data and as a table."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from .costs import Gradients
from .tables import percent, size, table


@dataclass(frozen=True)
class PlannedLayer:
    """One layer of a plan. ``num_final`` is None where a ranking during training decides it."""

    name: str
    shape: tuple[int, ...]
    num_weights: int
    num_source: int
    num_start: int
    num_final: int | None
    training_bytes: int
    inference_flops: float | None
    execution: str = "masked"

    def cells(self) -> list[str]:
        """The layer as a row of the plan's table."""
        end = "by ranking" if self.num_final is None else f"{self.num_final:,}"
        density = "?" if self.num_final is None else percent(self.num_final / self.num_weights)
        flops = "?" if self.inference_flops is None else f"{self.inference_flops:,.0f}"
        shape = "x".join(map(str, self.shape))
        counts = [f"{self.num_weights:,}", f"{self.num_start:,}", end, density]
        return [self.name, shape, *counts, size(self.training_bytes), flops, self.execution]


@dataclass(frozen=True)
class Flops:
    """FLOPs of the sparse layers for one sample, counted: a multiply and an add for each use of a live weight.

    Attributes:
        inference: one forward pass.
        training: forward and both backward products, averaged over the run, dense-gradient steps included.
        dense_inference, dense_training: the same of the dense net.
        dense_gradient_steps: steps of the run that compute the dense weight gradient, of whole layers whatever the source;
            None if its length is unknown.
        batch: samples of the example input.
    """

    inference: float
    training: float
    dense_inference: float
    dense_training: float
    dense_gradient_steps: int | None
    batch: int

    def __str__(self) -> str:
        steps = self.dense_gradient_steps
        among = f", {steps} steps of the run with a dense gradient" if steps else ""
        return (
            f"FLOPs of inference, one sample: {self.inference:,.0f}, "
            f"{_share(self.inference, self.dense_inference)} of dense (counted)\n"
            f"FLOPs of a training step, batch {self.batch}: {self.training * self.batch:,.0f}, "
            f"{_share(self.training, self.dense_training)} of dense{among} (counted)"
        )


@dataclass(frozen=True)
class Plan:
    """What ``attach`` with the same arguments will do. ``print`` it, or take ``as_dict()``.

    Attributes:
        num_start, num_final: live weights when training begins and from the end of the method's schedule on.
        num_parameters: of the whole model, biases and norms included.
        flops: None without ``example_input``.
        reasons: how a layer is executed, where there is something to say about it.
        warnings: what looks wrong; empty if nothing does.
        gradients: the dense gradients the method asks for; None if it asks for none.
    """

    method: str
    source: str
    num_weights: int
    num_start: int
    num_final: int
    num_parameters: int
    layers: list[PlannedLayer]
    flops: Flops | None
    reasons: dict[str, str]
    warnings: list[str]
    gradients: Gradients | None = None

    @property
    def density(self) -> float:
        """Final live weights over all weights of the sparse layers."""
        return self.num_final / self.num_weights

    @property
    def model_density(self) -> float:
        """Final live weights and all other parameters over all parameters of the model."""
        return (self.num_parameters - self.num_weights + self.num_final) / self.num_parameters

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self) | {"density": self.density, "model_density": self.model_density}

    def __str__(self) -> str:
        header = [
            "layer",
            "shape",
            "weights",
            "live at start",
            "live at end",
            "density",
            "memory",
            "FLOPs/sample",
            "execution",
        ]
        rows = [row.cells() for row in self.layers]
        memory = size(sum(row.training_bytes for row in self.layers))
        ends = [f"{self.num_weights:,}", f"{self.num_start:,}", f"{self.num_final:,}", percent(self.density)]
        rows.append(
            ["all", "", *ends, memory, "?" if self.flops is None else f"{self.flops.inference:,.0f}", ""]
        )
        lines = [
            f"{self.method} in {self.source} source",
            table(header, rows),
            f"density of the sparse layers {percent(self.density)}, of all parameters {percent(self.model_density)}",
            f"live values at the end: {size(4 * self.num_final)} of {size(4 * self.num_weights)} in float32",
            "FLOPs: give example_input= to count them" if self.flops is None else str(self.flops),
        ]
        if self.gradients is not None:
            lines.append(str(self.gradients))
        if self.flops is not None and any(row.execution == "masked" for row in self.layers):
            lines.append("masked execution computes the dense FLOPs, whatever is counted here")
        lines += [f"{name} runs {reason}" for name, reason in self.reasons.items()]
        return "\n".join(lines + [f"warning: {warning}" for warning in self.warnings])


def _share(part: float, whole: float) -> str:
    return percent(part / whole) if whole else "nothing"
