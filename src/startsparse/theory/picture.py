"""A picture of an embedding's chances: probability of success against the width of the source, with the bounds."""

from __future__ import annotations

import importlib
import io
import math
import os
from collections.abc import Mapping
from types import ModuleType

import numpy as np
from torch import nn

from ..artifact import atomic
from .assignment import assign, connect
from .entrance import SourceTooNarrow
from .graph import Target
from .source import INPUTS, Source, random_source
from .tracing import trace
from .widths import log_success, rarity

_SMALL = 300_000  # positions of a source that is cheap to draw many times
_TRIALS = 40


def draw_success(
    target: nn.Module, source: Source, path: str | os.PathLike[str], *, delta: float = 0.1, signs: int = 2
) -> None:
    """Write a picture (PNG): how probable it is that all units find their parents, as all widths are scaled.

    The curve is the closed form, the dashed line the union bound behind the theorem, the vertical line the theoretical
    width. Of small sources, the shares of forty draws that hold the target are drawn as points, by assignment.

    Args:
        target: what is embedded.
        source: made for it by density; its densities are taken.
        path: of the file.
        delta: the failure probability its widths were made for.
        signs: of the inputs copied.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: a source that was given as a module: its widths have no factor.
    """
    pyplot = _matplotlib()
    if not source.copies:
        raise ValueError("a picture of chances needs a source that was made from a density")
    traced = trace(target)
    densities = {name: layer.density for name, layer in source.layers.items()}
    scales = np.linspace(0.1, 1.4, 131)
    exact, union = zip(*[_chances(traced, source, densities, float(s), signs) for s in scales], strict=True)
    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    axes.plot(scales, exact, color="tab:blue", label="every unit finds its parents (closed form)")
    axes.plot(scales, union, color="tab:gray", linestyle="--", label="union bound")
    axes.axhline(1 - delta, color="tab:green", linewidth=1, label=f"1 - delta = {1 - delta:g}")
    axes.axvline(1, color="black", linewidth=1, linestyle=":", label="theoretical width")
    lowest = _lower(traced, source, signs)
    if 0.1 <= lowest <= 1.4:
        axes.axvline(
            lowest,
            color="tab:red",
            linewidth=1,
            linestyle=":",
            label="below: the first layer fails by itself",
        )
    if source.positions <= _SMALL:
        _points(axes, traced, densities, delta, signs)
    axes.set(
        xlabel="factor on the theoretical numbers of copies",
        ylabel="probability of success",
        ylim=(-0.02, 1.02),
    )
    axes.set_title(_title(source), fontsize=10)
    axes.legend(fontsize=8, loc="center right")
    axes.grid(alpha=0.3)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    pyplot.close(figure)
    atomic.write(path, [np.frombuffer(buffer.getvalue(), np.uint8)])


def _matplotlib() -> ModuleType:
    try:
        importlib.import_module("matplotlib").use("Agg")
        return importlib.import_module("matplotlib.pyplot")
    except ImportError as error:
        message = "a picture needs the package matplotlib: pip install 'startsparse[plots]'"
        raise ModuleNotFoundError(message, name="matplotlib") from error


def _copies(source: Source, scale: float) -> dict[str, int]:
    """All numbers of copies but the output's, scaled as ``random_source(shrink=...)`` does."""
    last = list(source.copies)[-1]
    return {name: q if name == last else max(1, round(q * scale)) for name, q in source.copies.items()}


def _chances(
    target: Target, source: Source, densities: Mapping[str, float], scale: float, signs: int
) -> tuple[float, float]:
    copies = _copies(source, scale)
    links = target.links(dict(densities), signs)
    misses = sum(
        link.weights * copies[link.writes] * math.exp(-rarity(link.density) * copies[link.reads])
        for link in links
    )
    return math.exp(log_success(links, lambda group: copies[group])), max(0.0, 1 - misses)


def _lower(target: Target, source: Source, signs: int) -> float:
    """The factor at which even one unit that reads every signed input fails half of the time."""
    entry = target.nodes[target.entry].group
    density = next(
        iter(target.links({n: layer.density for n, layer in source.layers.items()}, signs))
    ).density
    inputs = target.inputs * signs
    copies = math.log(1 / (1 - 0.5 ** (1 / inputs))) / rarity(density) if density < 1 else 1.0
    return copies / source.copies[entry]


def _points(axes, target: Target, densities: Mapping[str, float], delta: float, signs: int) -> None:
    scales = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    marks = {"strict": "o", "block": "s", "adaptive": "^"}
    for how, mark in marks.items():
        shares = [_share(target, densities, delta, signs, scale, how) for scale in scales]
        axes.plot(scales, shares, mark, markersize=5, alpha=0.8, label=f"{how}, {_TRIALS} sources drawn")


def _share(
    target: Target, densities: Mapping[str, float], delta: float, signs: int, scale: float, how: str
) -> float:
    held = 0
    for seed in range(_TRIALS):
        source = random_source(target, densities, delta, seed, signs=signs, shrink=scale)
        try:
            connect(target, source, assign(target, source, signs, how))
        except SourceTooNarrow:
            continue
        held += 1
    return held / _TRIALS


def _title(source: Source) -> str:
    widths = "-".join(str(layer.outputs) for layer in source.layers.values())
    density = source.layers[INPUTS].density
    return f"random source of widths {widths}, density {density:g}, {source.positions:,} positions"
