"""Groups of runs, paired by seed, against a baseline: who is better, and what that rests on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from startsparse.experiments import stats
from startsparse.names import nearest

Values = Mapping[str, Mapping[int, float]]  # label of a group -> seed -> figure


@dataclass(frozen=True)
class Row:
    """One group. ``difference`` is to the baseline, whose own is None."""

    label: str
    mean: float
    seeds: tuple[int, ...]
    difference: stats.Difference | None


def compare(values: Values, baseline: str, confidence: float = 0.95) -> list[Row]:
    """Every group against the baseline, in the order given; p values are adjusted for that many comparisons (Holm).

    Args:
        values: label -> seed -> figure.
        baseline: label of the group all others are compared with.
        confidence: of the intervals.

    Raises:
        ValueError: an unknown baseline, or groups that do not have the same seeds (they are named).

    Example:
        >>> rows = compare({"a": {0: .80, 1: .81, 2: .79, 3: .80, 4: .82},
        ...                 "b": {0: .85, 1: .85, 2: .85, 3: .86, 4: .86}}, "a")
        >>> [(row.label, row.difference and row.difference.judge()) for row in rows]
        [('a', None), ('b', 'better')]
    """
    if baseline not in values:
        raise ValueError(
            f"no group is called {baseline!r}, to be the baseline: {nearest(baseline, list(values))}"
        )
    seeds = sorted(set().union(*values.values()))
    missing = {label: [seed for seed in seeds if seed not in group] for label, group in values.items()}
    if lacking := {label: absent for label, absent in missing.items() if absent}:
        told = "; ".join(f"{label} lacks {', '.join(map(str, absent))}" for label, absent in lacking.items())
        raise ValueError(f"runs are compared seed by seed, and seeds are missing: {told}")
    others = [label for label in values if label != baseline]
    found = stats.holm_all(
        [
            stats.paired([values[label][s] - values[baseline][s] for s in seeds], confidence)
            for label in others
        ]
    )
    of = dict(zip(others, found, strict=True))
    return [
        Row(label, math.fsum(group.values()) / len(group), tuple(seeds), of.get(label))
        for label, group in values.items()
    ]


@dataclass(frozen=True)
class Unit:
    """How a figure is printed. Shares are shown in percent, their differences in percentage points."""

    name: str

    @property
    def is_share(self) -> bool:
        """Whether it is a share of one."""
        return any(word in self.name for word in ("accuracy", "density", "share"))

    @property
    def higher_is_better(self) -> bool:
        """Whether more of it is better: not for losses, errors and costs."""
        return not any(
            word in self.name
            for word in ("loss", "error", "perplexity", "flops", "seconds", "bytes", "steps")
        )

    @property
    def difference_heading(self) -> str:
        """The heading of a column of differences."""
        return "difference, pp" if self.is_share else "difference"

    def value(self, value: float) -> str:
        """A figure."""
        return f"{100 * value:.2f} %" if self.is_share else f"{value:.5g}"

    def change(self, value: float) -> str:
        """A difference, with its sign."""
        if math.isinf(value):
            return "-inf" if value < 0 else "+inf"
        return f"{100 * value:+.2f}" if self.is_share else f"{value:+.4g}"

    def interval(self, found: stats.Difference) -> str:
        """An interval."""
        return f"{self.change(found.low)} to {self.change(found.high)}"


def cells(row: Row, unit: Unit) -> list[str]:
    """A row as text: label, mean, difference, interval, p, p of the signs, verdict."""
    found = row.difference
    if found is None:
        return [row.label, unit.value(row.mean), "baseline", "", "", "", ""]
    return [
        row.label,
        unit.value(row.mean),
        unit.change(found.mean),
        unit.interval(found),
        p_value(found.p),
        p_value(found.p_signs),
        found.judge(unit.higher_is_better),
    ]


def headings(unit: Unit, rows: list[Row]) -> list[str]:
    """The headings of ``cells``."""
    confidence = next((row.difference.confidence for row in rows if row.difference), 0.95)
    family = sum(row.difference is not None for row in rows)
    p = "p" if family < 2 else f"p (Holm, {family})"
    return [
        "",
        unit.name,
        unit.difference_heading,
        f"{100 * confidence:g} % interval",
        p,
        "p of the signs",
        "verdict",
    ]


def p_value(p: float) -> str:
    """A p value, to two digits.

    Example:
        >>> p_value(0.0625), p_value(0.00001), p_value(1.0)
        ('0.062', '< 0.0001', '1')
    """
    return "< 0.0001" if p < 0.0001 else f"{p:.2g}"


def markdown(headers: list[str], rows: list[list[str]]) -> str:
    """A Markdown table.

    Example:
        >>> print(markdown(["", "n"], [["a", "1"]]))
        |  | n |
        | --- | --- |
        | a | 1 |
    """
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
