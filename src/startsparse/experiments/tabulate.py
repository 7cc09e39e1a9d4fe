"""The table of a comparison: from runs to rows, and rows as text, CSV and Markdown."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from startsparse import tables
from startsparse.experiments import budgets as costs
from startsparse.experiments import comparison, longer
from startsparse.experiments.groups import differing, groups
from startsparse.experiments.results import ResultsError, Run
from startsparse.names import nearest

CSV_COLUMNS = (
    "group", "metric", "mean", "seeds", "difference", "low", "high", "p", "p_signs", "verdict",
    "samples", "flops", "seconds",
)  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """Groups of runs against a baseline.

    Attributes:
        metric: what is compared.
        rows: one a group, in the order of the table.
        budgets: label -> what a run of the group costs.
        notes: what a reader should know.
    """

    metric: str
    rows: list[comparison.Row]
    budgets: Mapping[str, costs.Budget]
    notes: list[str]

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Headers and cells, as they are printed."""
        unit = comparison.Unit(self.metric)
        headers = [*comparison.headings(unit, self.rows), "samples", "FLOPs (counted)", "time (measured)"]
        return headers, [comparison.cells(row, unit) + self._costs(row) for row in self.rows]

    def text(self) -> str:
        """A plain table and the notes."""
        headers, rows = self.table()
        return "\n".join([tables.table(headers, rows), *self.notes])

    def markdown(self) -> str:
        """A Markdown table and the notes."""
        headers, rows = self.table()
        return comparison.markdown(headers, rows) + "".join(f"\n\n{note}" for note in self.notes)

    def csv(self) -> str:
        """One line a group, figures in full."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(CSV_COLUMNS)
        unit = comparison.Unit(self.metric)
        for row in self.rows:
            found, cost = row.difference, self.budgets[row.label]
            told = ["", "", "", "", "", "baseline"]
            if found is not None:
                verdict = found.judge(unit.higher_is_better)
                told = [found.mean, found.low, found.high, found.p, found.p_signs, verdict]
            seeds = " ".join(map(str, row.seeds))
            writer.writerow(
                [row.label, self.metric, row.mean, seeds, *told, cost.samples, cost.flops, cost.seconds]
            )
        return out.getvalue()

    def _costs(self, row: comparison.Row) -> list[str]:
        cost = self.budgets[row.label]
        return [f"{cost.samples:,.0f}", f"{cost.flops:.3g}", f"{cost.seconds:.1f} s"]


def tabulate(
    runs: Sequence[Run],
    metric: str = "test_accuracy",
    baseline: str | None = None,
    by: Sequence[str] = (),
    match: str | None = None,
    confidence: float = 0.95,
    budget: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Comparison:
    """Compare groups of runs, seed by seed.

    Args:
        runs: finished runs of one data set and split.
        metric: a figure of their results.
        baseline: label of the group the others are compared with, or how it begins; default: the dense one if there
            is one, else the first.
        by: what tells groups apart, as for ``groups``.
        match: None compares the runs as they ended; "samples", "flops" or "seconds" compares them where each had cost
            what the cheapest group costs in all, on the held-out part.
        confidence: of the intervals.
        budget: "fine-tune" asks that the final training of all groups be equally long; "total" compares runs that have
            seen as many samples as the dearest one: the others are trained again, the last stage longer (the controls
            of extended fine-tuning). It takes their time.
        say: is told what is trained.

    Raises:
        ResultsError: runs of different data or splits, missing seeds, an unknown metric or baseline, a single group.
    """
    if budget is not None and budget not in longer.BUDGETS:
        raise ResultsError(f"budget: unknown budget {budget!r}: {nearest(budget, longer.BUDGETS)}")
    if budget is not None and match is not None:
        raise ResultsError(f"budget {budget} and match {match} are two ways to equal costs: take one")
    found = groups(runs, by)
    if len(found) < 2:
        raise ResultsError(f"there is only one group of runs, {', '.join(found)}: nothing to compare it with")
    _check_seeds(found)
    chosen = _baseline(found, baseline)
    notes = [_seeds(found)]
    if budget == "fine-tune":
        notes.append(f"the final training of all groups has {longer.check_final(found):,} steps")
    if budget == "total":
        found = {
            label: dict(zip(group, made, strict=True))
            for (label, group), made in zip(found.items(), _on_equal_totals(found, say), strict=True)
        }
        notes.append(
            "at equal samples: what cost less has trained longer in the end, see the folder extended"
        )
    spent = {label: costs.budget(group) for label, group in found.items()}
    if match is None:
        values = {
            label: {seed: _figure(run, metric) for seed, run in group.items()}
            for label, group in found.items()
        }
        notes += [] if budget == "total" else _unequal(spent)
    else:
        if match not in costs.COSTS:
            raise ResultsError(f"match: unknown cost {match!r}: {nearest(match, costs.COSTS)}")
        values, limit = costs.at_equal_cost(found, spent, match, metric)
        notes.append(
            f"at equal {match}: each run at its last validation within {limit:.4g}, what the cheapest group costs in "
            f"all; schedules of longer runs had not ended by then"
        )
    between = [path for path in differing([next(iter(group.values())) for group in found.values()]) if by]
    if hidden := [path for path in between if not any(path == b or path.startswith(f"{b}.") for b in by)]:
        notes.append(f"groups differ besides in {', '.join(hidden)}")
    return Comparison(metric, comparison.compare(values, chosen, confidence), spent, notes)


def _on_equal_totals(
    found: Mapping[str, Mapping[int, Run]], say: Callable[[str], None]
) -> Iterator[list[Run]]:
    """The runs of each group, made longer where they were cheaper than the dearest of all."""
    made = iter(longer.to_equal_totals([run for group in found.values() for run in group.values()], say))
    for group in found.values():
        yield [next(made) for _ in group]


def _figure(run: Run, metric: str) -> float:
    value = run.result.get(metric)
    if isinstance(value, bool) or not isinstance(value, int | float):
        known = [key for key, figure in run.result.items() if isinstance(figure, int | float)]
        raise ResultsError(f"metric: {run.folder} has no figure {metric!r}: {nearest(metric, known)}")
    return float(value)


def _check_seeds(found: Mapping[str, Mapping[int, Run]]) -> None:
    seeds = sorted(set().union(*found.values()))
    lacking = [
        f"{label} lacks seed {', '.join(map(str, absent))}"
        for label, group in found.items()
        if (absent := [seed for seed in seeds if seed not in group])
    ]
    if lacking:
        raise ResultsError(
            f"runs are compared seed by seed, and seeds are missing: {'; '.join(lacking)}. Train them, or leave the "
            f"others out"
        )


def _baseline(found: Mapping[str, object], baseline: str | None) -> str:
    if baseline is None:
        return "dense" if "dense" in found else next(iter(found))
    fitting = [label for label in found if label == baseline] or [
        label for label in found if label.startswith(baseline)
    ]
    if len(fitting) != 1:
        why = f"it may be {' or '.join(fitting)}" if fitting else nearest(baseline, list(found))
        raise ResultsError(f"baseline: no single group is called {baseline!r}: {why}")
    return fitting[0]


def _seeds(found: Mapping[str, Mapping[int, Run]]) -> str:
    seeds = sorted(next(iter(found.values())))
    return f"{len(seeds)} paired seeds: {', '.join(map(str, seeds))}"


def _unequal(spent: Mapping[str, costs.Budget]) -> list[str]:
    if len({cost.samples for cost in spent.values()}) > 1:
        return [
            "the groups have not seen the same number of samples: match=samples compares them where they had"
        ]
    return []
