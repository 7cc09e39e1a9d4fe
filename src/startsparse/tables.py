"""Plain text tables for reports: right-aligned numbers, one line a row."""

from __future__ import annotations

from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell; the first one left-aligned, the others right-aligned.

    Example:
        >>> print(table(["layer", "live"], [["fc1", "1,176"], ["fc2", "50"]]))
        layer   live
        fc1    1,176
        fc2       50
    """
    widths = [max(len(str(row[i])) for row in [header, *rows]) for i in range(len(header))]
    lines = []
    for row in [header, *rows]:
        cells = [f"{row[0]:<{widths[0]}}"] + [
            f"{cell:>{w}}" for cell, w in zip(row[1:], widths[1:], strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def percent(share: float) -> str:
    """A share as a percentage with three significant digits.

    Example:
        >>> percent(0.05), percent(1.0), percent(0.000532)
        ('5%', '100%', '0.0532%')
    """
    return f"{100 * share:.3g}%"


def size(num_bytes: float) -> str:
    """Bytes in binary units.

    Example:
        >>> size(1023), size(1536), size(3 * 2**20)
        ('1023 B', '1.5 KiB', '3.0 MiB')
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if num_bytes < 1024 or unit == "GiB":
            return f"{num_bytes:.0f} B" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    raise AssertionError
