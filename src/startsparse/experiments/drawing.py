"""Pictures for the report page, as text that stands in HTML: curves and bars in SVG, masks as small images."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from startsparse.training.names import require

Points = Sequence[tuple[float, float]]
COLOURS = ("#1f5fa8", "#c2570c", "#2d7d46", "#7a3f9d")
WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 460, 240, 58, 34, 14


def curves(series: Mapping[str, Points], x_label: str, title: str) -> str:
    """Lines over a common axis, as an SVG element. Points that are no finite number are left out.

    Example:
        >>> picture = curves({"train": [(0, 1.0), (10, 0.5)]}, "step", "loss")
        >>> picture.count("<polyline"), "train" in picture
        (1, True)
    """
    shown = {
        name: [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
        for name, points in series.items()
    }
    shown = {name: points for name, points in shown.items() if points}
    if not shown:
        return f"<p>no values of {html.escape(title)}</p>"
    xs = [x for points in shown.values() for x, _ in points]
    ys = [y for points in shown.values() for _, y in points]
    floor = min(ys) if min(ys) < max(ys) else min(0.0, *ys)  # what stays as it was is seen against zero
    x_ticks, y_ticks = ticks(min(xs), max(xs)), ticks(floor, max(ys))
    across = _scale(min(x_ticks[0], min(xs)), max(x_ticks[-1], max(xs)), LEFT, WIDTH - 12)
    up = _scale(min(y_ticks[0], floor), max(y_ticks[-1], max(ys)), HEIGHT - BOTTOM, TOP + 16)
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(title)}">']
    parts += [
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - 12}" y1="{up(y):.1f}" y2="{up(y):.1f}"/>'
        f'<text class="y" x="{LEFT - 6}" y="{up(y) + 4:.1f}">{y:g}</text>'
        for y in y_ticks
    ]
    parts += [f'<text class="x" x="{across(x):.1f}" y="{HEIGHT - 18}">{x:g}</text>' for x in x_ticks]
    parts.append(f'<text class="x" x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 3}">{html.escape(x_label)}</text>')
    for i, (name, points) in enumerate(shown.items()):
        colour = COLOURS[i % len(COLOURS)]
        line = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in points)
        parts.append(f'<polyline points="{line}" stroke="{colour}"/>')
        if len(points) == 1:
            parts.append(
                f'<circle cx="{across(points[0][0]):.1f}" cy="{up(points[0][1]):.1f}" r="3" fill="{colour}"/>'
            )
        parts.append(f'<text x="{LEFT + 90 * i}" y="{TOP}" fill="{colour}">{html.escape(name)}</text>')
    return "".join([*parts, "</svg>"])


def bar(share: float) -> str:
    """A share of one as a bar.

    Example:
        >>> bar(0.5)
        '<span class="bar"><span style="width:50.00%"></span></span>'
    """
    return f'<span class="bar"><span style="width:{100 * min(max(share, 0.0), 1.0):.2f}%"></span></span>'


def mask(live: Tensor, most: int = 96) -> str:
    """A mask as an image: rows are outputs, columns inputs and taps; the darker, the more of the weights live.

    Masks of more than ``most`` rows or columns are averaged over blocks.

    Example:
        >>> mask(torch.tensor([[True, False]])).startswith('<img')
        True
    """
    flat = live.reshape(live.shape[0], -1).float() if live.dim() > 1 else live.reshape(1, -1).float()
    rows, columns = min(flat.shape[0], most), min(flat.shape[1], most)
    shares = torch.nn.functional.adaptive_avg_pool2d(flat[None, None], (rows, columns))[0, 0]
    highest = max(float(shares.max()), 1e-12)
    grey = (255 - 225 * shares / highest).round().to(torch.uint8).numpy().astype(np.uint8)
    stream = io.BytesIO()
    require("PIL.Image", "a picture of a mask").fromarray(grey).save(stream, "PNG")
    data = base64.b64encode(stream.getvalue()).decode()
    told = f"{100 * highest:.3g} % of the weights of the darkest block live"
    return f'<img alt="{told}" title="{told}" src="data:image/png;base64,{data}">'


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers from about ``low`` to about ``high``.

    Example:
        >>> ticks(0.13, 0.92), ticks(3, 3)
        ([0.2, 0.4, 0.6, 0.8], [3])
    """
    if high <= low:
        return [low]
    step = 10 ** math.floor(math.log10((high - low) / about))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= about)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 12) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def _scale(low: float, high: float, start: float, end: float):
    span = (high - low) or 1.0
    return lambda value: start + (value - low) / span * (end - start)
