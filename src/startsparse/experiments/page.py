"""The report page of a run: one HTML file that needs nothing else."""

from __future__ import annotations

import html
from pathlib import Path

import startsparse as ss
from startsparse.experiments import drawing, staged
from startsparse.experiments.results import ResultsError, Run, read
from startsparse.training.files import read_json, write_atomic
from startsparse.training.folder import RunFolder

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c1f23; max-width: 1000px; margin: 2em auto; padding: 0 1em }
h1 { font-size: 1.5em; margin-bottom: 0 } h2 { font-size: 1.1em; margin-top: 2em }
.figures { display: flex; flex-wrap: wrap; gap: 1em 2.5em } .figures b { display: block; font-size: 1.4em }
.curves { display: flex; flex-wrap: wrap; gap: 1em } .curves figure { margin: 0; flex: 1 1 420px }
svg { width: 100%; font-size: 11px } polyline { fill: none; stroke-width: 1.8 } .grid { stroke: #e3e6ea }
svg .y { text-anchor: end; fill: #667 } svg .x { text-anchor: middle; fill: #667 }
table { border-collapse: collapse } td, th { padding: .25em .8em; text-align: right; vertical-align: middle }
.wide { overflow-x: auto }
td:first-child, th:first-child { text-align: left; padding-left: 0 } th { border-bottom: 1px solid #99a }
.bar { display: inline-block; width: 120px; height: 10px; background: #eceff3 }
.bar span { display: block; height: 100%; background: #1f5fa8; min-width: 1px }
img { image-rendering: pixelated; width: 140px; max-height: 140px; border: 1px solid #ccd; display: block }
pre { background: #f5f6f8; padding: 1em; overflow: auto; font-size: 12px } .small { color: #667 }
"""


def write(folder: str | Path, output: str | Path | None = None) -> Path:
    """Write the page of a finished run; returns where.

    Raises:
        ResultsError: the run has not ended, or has several stages.
    """
    run = read(Path(folder))
    if staged.is_staged(run.folder):
        raise ResultsError(
            f"{run.folder} has several stages, a page is of one training: compare and ls show its figures"
        )
    place = Path(output) if output is not None else run.folder / "report.html"
    write_atomic(place, page(run).encode())
    return place


def page(run: Run) -> str:
    """The page as text."""
    title = html.escape(run.folder.resolve().name)
    recipe = html.escape((run.folder / "recipe.yaml").read_text())
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head><body>'
        f"<h1>{title}</h1><p class='small'>{html.escape(_subtitle(run))}</p>"
        f"<div class='figures'>{_figures(run)}</div>"
        f"<h2>Curves</h2><div class='curves'>{_curves(run)}</div>"
        f"<h2>Layers</h2>{_layers(run)}"
        f"<h2>Recipe</h2><pre>{recipe}</pre></body></html>\n"
    )


def _subtitle(run: Run) -> str:
    settings = run.settings
    source = settings.get("source.name")
    inside = f" in {source} source" if source else ""
    versions = run.folder / "version.json"
    made = read_json(versions) if versions.exists() else {}
    by = f", startsparse {made['startsparse']}, torch {made['torch']}" if made else ""
    return (
        f"{settings.get('method.name') or 'dense'}{inside}, {settings['model.name']} on {settings['data.name']}, "
        f"seed {run.seed}{by}"
    )


def _figures(run: Run) -> str:
    result = run.result
    shown: list[tuple[str, str]] = [
        (key.replace("_", " "), f"{100 * result[key]:.2f} %" if "accuracy" in key else f"{result[key]:.4f}")
        for key in ("test_accuracy", "validation_accuracy", "test_loss", "validation_loss")
        if result.get(key) is not None
    ]
    shown += [
        ("sparsity", f"{100 * (1 - result['density']):.2f} %"),
        ("live weights", f"{result['live_weights']:,}"),
        ("steps", f"{result['steps']:,}"),
        ("compact file, bytes", f"{result['net_bytes']:,}"),
        ("training steps, measured", f"{run.seconds:.1f} s"),
    ]
    return "".join(f"<span>{html.escape(name)}<b>{value}</b></span>" for name, value in shown)


def _curves(run: Run) -> str:
    rows = RunFolder(run.folder).metrics.rows()
    pictures = []
    for name in ("loss", "accuracy"):
        series = {
            kind: [
                (row["step"], row[name]) for row in rows if row["kind"] == kind and row.get(name) is not None
            ]
            for kind in ("train", "validation")
        }
        if any(series.values()):
            pictures.append((name, drawing.curves(series, "step", name)))
    for name in ("density", "lr"):
        points = [(row["step"], row[name]) for row in rows if row["kind"] == "train"]
        title = "learning rate" if name == "lr" else name
        pictures.append((title, drawing.curves({title: points}, "step", title)))
    return "".join(f"<figure><figcaption>{name}</figcaption>{picture}</figure>" for name, picture in pictures)


def _layers(run: Run) -> str:
    if run.settings.get("method.name") is None:
        return "<p>a dense run: every weight lives</p>"
    masks = ss.load(RunFolder(run.folder).net).masks
    rows = []
    for name, live in masks.items():
        count, total = int(live.sum()), live.numel()
        shape = "x".join(map(str, live.shape))
        rows.append(
            f"<tr><td>{html.escape(name)}</td><td>{shape}</td><td>{total:,}</td><td>{count:,}</td>"
            f"<td>{100 * count / total:.3g} %</td><td>{drawing.bar(count / total)}</td><td>{drawing.mask(live)}</td></tr>"
        )
    fused = RunFolder(run.folder).fused
    told = (
        f"<h2>Layers that run together</h2><pre>{html.escape(fused.read_text())}</pre>"
        if fused.exists()
        else ""
    )
    head = "".join(
        f"<th>{title}</th>" for title in ("layer", "shape", "weights", "live", "density", "", "mask")
    )
    return (
        f"<div class='wide'><table><tr>{head}</tr>{''.join(rows)}</table></div><p class='small'>Masks: a row is an output, a column an input "
        f"(and tap); large ones are averaged over blocks, the darkest block of a layer has most live weights.</p>{told}"
    )
