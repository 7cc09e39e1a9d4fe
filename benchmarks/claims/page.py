"""The page docs/evidence.md: what every judged claim found, taken from the verdicts."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

from claim import VERDICTS

HEAD = """# Evidence

What has been measured here, claim by claim. Behind each title stand the table with its intervals, the raw records, the
machine and the script that makes them again. `PASS`, `FAIL` and `CANNOT TELL` are of thresholds that stood before the
runs. Written by `python benchmarks/claims page`.
"""


def page(root: Path) -> str:
    """Markdown: every judged claim with the lines of its verdict that decide something."""
    parts = [HEAD]
    for file in sorted(root.glob("*/verdict.md")):
        lines = file.read_text().splitlines()
        title = lines[0].removeprefix("# ")
        note = next(
            (line.strip("*").replace("**", "") for line in lines if line.startswith("**INCOMPLETE")), ""
        )
        found = _shortened(_decided(lines), lines)
        link = f"[{title}](../benchmarks/claims/{file.parent.name}/verdict.md)"
        body = [link, *([note] if note else [])]
        parts.append(
            "\n".join([f"## {file.parent.name}", "", *map(_filled, body), "", *map(_filled, found)]) + "\n"
        )
    return "\n".join(parts)


def _decided(lines: list[str]) -> list[str]:
    """The lines that decide something; what is said under several headings names its own."""
    found, heading = [], ""
    for line in lines[1:]:
        if line.startswith("#") or re.fullmatch(r"\*\*[^*]+\*\*", line):
            heading = line.strip("#* ")
        elif VERDICTS.search(line):
            found.append((heading, _bullet(line).removeprefix("- ")))
    under: dict[str, set[str]] = {}
    for heading, text in found:
        under.setdefault(_subject(text), set()).add(heading)
    apart = {subject for subject, headings in under.items() if len(headings) > 1}
    return [f"- {heading}: {text}" if _subject(text) in apart else f"- {text}" for heading, text in found]


def _shortened(found: list[str], lines: list[str]) -> list[str]:
    """A table of more than twenty decisions is told in numbers: it is behind the link."""
    cells = [cell.strip() for line in lines if line.startswith("|") for cell in line.split("|")]
    if len(found) <= 20 or not any(VERDICTS.fullmatch(cell) for cell in cells):
        return found
    counts = {word: cells.count(word) for word in ("PASS", "FAIL", "CANNOT TELL")}
    return ["- in its tables: " + ", ".join(f"{count} {word}" for word, count in counts.items())]


def _subject(text: str) -> str:
    """What a line is about: all before its figures."""
    return text.split(":")[0] if ":" in text else re.split(r"\d", text)[0]


def _bullet(line: str) -> str:
    """A verdict's line, a bullet or a row of a table, as a bullet."""
    if line.lstrip().startswith("|"):
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        line = ": ".join([cells[0], ", ".join(cell for cell in cells[1:] if cell)])
    return "- " + re.sub(r"^[-*] ", "", line.strip()).strip()


def _filled(line: str) -> str:
    indent = "  " if line.startswith("- ") else ""
    return textwrap.fill(line, 118, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
