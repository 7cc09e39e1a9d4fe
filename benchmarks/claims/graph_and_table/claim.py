"""Random sparse nets on a table and on a graph, against dense ones of the same training.

The table is scikit-learn's breast cancer data, the graph one of nearest neighbours over its digits, 200 of whose nodes are
labelled. Each seed splits the table anew (455 rows to train on, 114 to test) and draws other labelled nodes (20 a class)
and masks; nothing is chosen on the test part. Small data: a difference of a row of the table is 0.9 points.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import common
import torch
from common import Data, at_least, points

import startsparse as ss
from startsparse.training import data as data_sets
from startsparse.training import seeds
from startsparse.training.data.bundled import read_breast_cancer, read_digits_graph
from startsparse.training.data.table import moments

TITLE = (
    "On a table and on a graph, random sparse nets of density 30 and 10 % are as good as dense ones, "
    "within 2 points"
)
SOURCE = "Gadhikar et al. 2023, appendix (tabular and graph data, as recalled); other data and nets, at small scale"

MARGIN = 0.02
DENSITIES = (1.0, 0.3, 0.1, 0.03)
RULES = ("balanced", "erk", "uniform")
TASKS: dict[str, dict[str, Any]] = {
    "table": {"steps": 140, "batch": 64, "lr": 0.01, "options": {}},
    "graph": {"steps": 120, "batch": 100, "lr": 0.01, "options": {"weight_decay": 5e-4}},
}
TASKS["wide graph"] = TASKS["graph"]
WIDTHS = {
    "graph": 64,
    "wide graph": 640,
}  # at density 0.1 the wide one has as many weights as the other one dense
SEEDS = range(10)


def runs() -> list[dict[str, Any]]:
    """A run for each task and seed: dense, and every rule at every density."""
    return [{"task": task, "seed": seed} for seed in SEEDS for task in TASKS]


def run(task: str, seed: int) -> dict[str, Any]:
    """All nets of a task and seed: name -> figures."""
    torch.set_num_threads(1)
    data = (table if task == "table" else graph)(seed)
    found = {"dense": one(task, data, None, seed)}
    for density in DENSITIES[1:]:
        for rule in RULES:
            found[f"{rule} {density:g}"] = one(task, data, ss.Static(density, rule, seed=seed), seed)
    return found


def one(task: str, data: Data, method: Any, seed: int) -> dict[str, Any]:
    """Train one net."""
    model = (
        common.make_model("mlp", data, seed, widths=[256, 256, 256], batch_norm=True)
        if task == "table"
        else common.make_model("gcn", data, seed, widths=[WIDTHS[task]])
    )
    how = TASKS[task]
    result = common.train(
        model, data, method, steps=how["steps"], batch=how["batch"], optimizer="adam", lr=how["lr"],
        options=how["options"], seed=seed,
    )  # fmt: skip
    return {key: result[key] for key in ("test_accuracy", "live_weights", "flops")}


def table(seed: int) -> Data:
    """The breast cancer table, split by seed."""
    whole = _all(read_breast_cancer(Path()))
    order = torch.randperm(len(whole), generator=_generator(seed, "table"))
    train, test = whole.take(order[114:]), whole.take(order[:114])
    mean, std = (torch.tensor(values) for values in moments(train))
    x, held = ((part.inputs - mean) / std for part in (train, test))
    return Data("table", x, train.labels, x[:0], train.labels[:0], held, test.labels, classes=2)


def graph(seed: int) -> Data:
    """The graph of digits, 20 labelled nodes of each class by seed."""
    whole = _all(read_digits_graph(Path()))
    order = torch.randperm(len(whole), generator=_generator(seed, "graph"))
    seen = torch.cat([order[whole.labels[order] == digit][:20] for digit in range(10)])
    hidden = torch.ones(len(whole), dtype=torch.bool).index_fill_(0, seen, False)
    entry = data_sets.describe("digits-graph")
    x = (whole.inputs.float() / 255 - entry.mean[0]) / entry.std[0]
    y = whole.labels
    return Data("graph", x[seen], y[seen], x[:0], y[:0], x[hidden], y[hidden], classes=10)


def _all(parts: tuple[data_sets.Split, data_sets.Split]) -> data_sets.Split:
    train, test = parts
    return data_sets.Split(torch.cat([train.inputs, test.inputs]), torch.cat([train.labels, test.labels]))


def _generator(seed: int, what: str) -> torch.Generator:
    return torch.Generator().manual_seed(seeds.derive(seed, what))


def judge(records: list[dict[str, Any]]) -> str:
    """Each sparse net minus the dense one."""
    lines = ["| task | net | live weights | test accuracy | minus dense | within |", "| --- " * 6 + "|"]
    for task in TASKS:
        chosen = common.one_by_one([r for r in records if r["params"]["task"] == task], key="net")
        for net in dict.fromkeys(record["params"]["net"] for record in chosen):
            mine = [record["result"] for record in chosen if record["params"]["net"] == net]
            mean = statistics.fmean(figures["test_accuracy"] for figures in mine)
            cells = ["", ""]
            if net != "dense":
                found = common.difference(chosen, "net", "test_accuracy", net, "dense")
                cells = [points(found), at_least(found, -MARGIN)]
            lines.append(
                f"| {task} | {net} | {mine[0]['live_weights']:,} | {100 * mean:.2f} % | {' | '.join(cells)} |"
            )
    note = f"*within* asks whether the interval lies above -{100 * MARGIN:g} points; the title is about the first two densities."
    return "\n".join([*lines, "", note])
