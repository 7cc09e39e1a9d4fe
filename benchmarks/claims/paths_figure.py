"""Accuracy against training FLOPs: one small panel a scheme, its way from dense into ever thinner random sources.

Every panel has the ways of all other schemes (in balanced sources) in grey, and the random masks that were trained from
the start as stars. What lies far below the best stands at the lower edge as a cross; its accuracy is written above.
Rules are told apart by colour (of Okabe and Ito's palette), by mark and by line style; densities stand at the points.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

RULES = {  # distribution of a source -> colour, mark, line
    "balanced": ("#0072B2", "o", "-"),
    "erk": ("#D55E00", "s", "--"),
    "uniform": ("#009E73", "^", ":"),
    "pyramidal": ("#CC79A7", "D", "-."),
}
GREY = "#c8c8c8"
FAR = 10.0  # points below the best
Key = tuple[str, str]


def draw(
    found: Mapping[Key, tuple[float, float]],
    schemes: Sequence[str],
    controls: Mapping[str, str | None],
    title: str,
    path: Path,
) -> None:
    """Write ``path``.svg and ``path``.png.

    Args:
        found: (scheme, source) -> training FLOPs, accuracy in percent; sources are "dense", "RULE DENSITY", and "none"
            for controls.
        schemes: one panel each, in this order.
        controls: name -> label of its star, None for none.
        title: of the whole.
        path: without suffix.
    """
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams |= {"svg.hashsalt": "startsparse", "svg.fonttype": "none"}
    columns = 5
    rows = math.ceil(len(schemes) / columns)
    figure = Figure(figsize=(2.5 * columns, 2.6 * rows + 0.5), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    floor = max(y for _, y in found.values()) - FAR
    shown = [scheme for scheme in schemes if (scheme, "dense") in found]
    for panel, scheme in zip(panels.flat, schemes, strict=False):
        for other in shown:
            x, y = zip(*(found[other, source] for source in way(found, other, "balanced")), strict=True)
            panel.plot(x, y, color="none" if other == scheme else GREY, lw=0.8, zorder=1)
        for name, label in controls.items():
            if label and (name, "none") in found:
                x, y = found[name, "none"]
                panel.plot(x, y, "*", color="black", ms=8, zorder=3)
                said = label if panel is panels[0, -1] else ""
                panel.annotate(said, (x, y), (6, -9), textcoords="offset points", fontsize=6.5)
        for rule, (color, mark, line) in RULES.items():
            _way(panel, found, scheme, rule, (color, mark, line), floor)
        if (scheme, "dense") in found:
            panel.plot(*found[scheme, "dense"], "o", mfc="white", mec="black", ms=7, zorder=5)
        panel.set_title(scheme, fontsize=9, fontweight="bold")
        panel.set_xscale("log")
        panel.margins(y=0.1)
        panel.tick_params(labelsize=7)
        panel.grid(color="#eeeeee", lw=0.6, zorder=0)
    for panel in list(panels.flat)[len(schemes) :]:
        panel.set_visible(False)
    _legend(figure, found)
    panels[-1, columns // 2].set_xlabel("training FLOPs of the sparse layers, counted", fontsize=9)
    figure.supylabel("test accuracy, %", fontsize=9)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
    figure.savefig(path.with_suffix(".png"), dpi=130, metadata={"Software": None})


def way(found: Mapping[Key, tuple[float, float]], scheme: str, rule: str) -> list[str]:
    """The sources a scheme was run in, from dense to the thinnest of a rule."""
    inside = [source for name, source in found if name == scheme and source.startswith(f"{rule} ")]
    return ["dense", *sorted(inside, key=lambda source: -float(source.split()[1]))]


def _way(panel, found, scheme: str, rule: str, look: tuple[str, str, str], floor: float) -> None:
    color, mark, line = look
    sources = way(found, scheme, rule)
    if (scheme, "dense") not in found or len(sources) < 2:
        return
    x, y = zip(*(found[scheme, source] for source in sources), strict=True)
    panel.plot(x, [max(at, floor) for at in y], line, color=color, lw=1.3, zorder=4)
    below = []
    for source, at, height in zip(sources[1:], x[1:], y[1:], strict=True):
        density = source.split()[1].removeprefix("0")
        panel.plot(at, max(height, floor), mark if height >= floor else "x", color=color, ms=4, zorder=4)
        if height < floor:
            below.append(f"{density}: {height:.0f} %")
        elif rule == "balanced" and max(x) > 1.2 * min(x):
            panel.annotate(
                density, (at, height), (0, 5), textcoords="offset points", fontsize=6.5, ha="center"
            )
    if below:
        panel.text(
            0.98, 0.02, "  ".join(below), transform=panel.transAxes, fontsize=6.5, color=color, ha="right"
        )


def _legend(figure, found) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], marker="o", mfc="white", mec="black", ls="", label="dense")]
    handles += [
        Line2D([], [], color=color, marker=mark, ls=line, ms=4, label=f"in {rule}")
        for rule, (color, mark, line) in RULES.items()
        if any(source.startswith(f"{rule} ") for _, source in found)
    ]
    figure.legend(handles=handles, fontsize=8, loc="outside lower center", ncols=len(handles), frameon=False)
