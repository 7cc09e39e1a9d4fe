"""The documentation runs: blocks, printed output, links, tables, cards and the line counts of CONTRIBUTING.

In ``README.md``, ``CONTRIBUTING.md`` and everything below ``docs/``:

- each ```` ```python ```` block is executed; the blocks of a file share a namespace and a temporary folder, and a
  warning is an error;
- a ```` ```text ```` block that directly follows is what the block prints (``...`` stands for anything, as in doctest);
- lines of ```` ```sh ```` blocks that begin with ``startsparse`` are run, with the recipes at hand.
"""

from __future__ import annotations

import ast
import contextlib
import doctest
import inspect
import io
import itertools
import re
import shlex
import shutil
import sys
import textwrap
import types
import warnings
from dataclasses import dataclass, fields
from pathlib import Path

import pytest
import torch

import startsparse as ss
from startsparse.cli.main import main

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
IDS = [page.relative_to(ROOT).as_posix() for page in PAGES]
LANGUAGES = {"python", "text", "sh", "yaml", "bibtex"}
AT_LEAST = {"README.md": 3, "docs/how-to/own_loop.md": 8, "docs/how-to/random_masks.md": 6}
CHECKER = doctest.OutputChecker()


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, text, first line in the page, and the text block that directly follows."""

    language: str
    text: str
    line: int
    output: str | None


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    source = page.read_text(encoding="utf-8")
    found = list(re.finditer(r"^```(\w*)\n(.*?)^```$", source, re.MULTILINE | re.DOTALL))
    return [
        Block(
            block[1],
            block[2],
            source.count("\n", 0, block.start(2)) + 1,
            following[2]
            if following and following[1] == "text" and _adjacent(source, block, following)
            else None,
        )
        for block, following in itertools.zip_longest(found, found[1:])
    ]


def _adjacent(source: str, block: re.Match, following: re.Match) -> bool:
    return not source[block.end() : following.start()].strip()


def prose(page: Path) -> str:
    """A page without its fenced blocks and inline code."""
    return re.sub(
        r"`[^`\n]*`", "", re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    )


def test_there_is_enough_to_test():
    assert len(PAGES) >= 24
    count = {
        name: sum(b.language == "python" for b in blocks(page)) for name, page in zip(IDS, PAGES, strict=True)
    }
    cards = {f"docs/methods/{name}.md": 1 for name in ss.methods.names()}
    assert all(count[name] >= least for name, least in (AT_LEAST | cards).items()), count
    assert sum(count.values()) >= 25


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_blocks_name_their_language(page):
    assert {block.language for block in blocks(page)} <= LANGUAGES
    assert page.read_text().count("```") == 2 * len(blocks(page)), (
        "a fence that is not closed, or is indented"
    )


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType("page")  # as a program would have it: pickled by name, annotations resolved
    monkeypatch.setitem(sys.modules, "page", module)
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("error")
        for block in blocks(page):
            if block.language == "python":
                _execute(block, page, module)


def _execute(block: Block, page: Path, module: types.ModuleType) -> None:
    code = compile("\n" * (block.line - 1) + block.text, str(page), "exec")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, module.__dict__)  # noqa: S102 - these pages are ours
    if block.output is not None:
        where = f"{page.relative_to(ROOT)}:{block.line} prints something else than the page says"
        same = CHECKER.check_output(block.output, printed.getvalue(), doctest.ELLIPSIS)
        assert same, f"{where}:\n{printed.getvalue()}"


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_commands_run(page, tmp_path, monkeypatch, capsys):
    commands = [
        line
        for b in blocks(page)
        if b.language == "sh"
        for line in b.text.splitlines()
        if line.startswith("startsparse ")
    ]
    monkeypatch.chdir(tmp_path)
    _ = shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    for command in commands:
        assert main(shlex.split(command, comments=True)[1:]) == 0, f"{command}\n{capsys.readouterr().err}"
    if page == ROOT / "README.md":
        assert len(commands) >= 3


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{page.name}: {target} leads nowhere"
        assert there.is_relative_to(ROOT), f"{page.name}: {target} leads out of the repository"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", there.read_text(), re.MULTILINE)
            slugs = [
                re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings
            ]
            assert anchor in slugs, f"{page.name}: {target}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_lines_are_not_too_long(page):
    if page.is_relative_to(ROOT / "docs" / "formats"):
        return
    written = re.sub(r"^```text\n.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    assert not [line for line in written.splitlines() if len(line) > 120 and "|" not in line]


# -- tables and cards ----------------------------------------------------------------------------------------------


def table(page: Path, header: str) -> list[list[str]]:
    """The cells of the table whose header row begins with ``header``, without header and ruler."""
    lines = iter(page.read_text().splitlines())
    for line in lines:
        if line.startswith(f"| {header} |"):
            break
    else:
        raise AssertionError(f"{page.name} has no table that begins with {header!r}")
    next(lines)
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


@pytest.mark.parametrize(
    ("kind", "header"), [("attach", "method"), ("lottery", "lottery"), ("search", "search")]
)
def test_methods_of_the_readme(kind, header):
    expected = [
        [f"[`{name}`](docs/methods/{name}.md)", f"`ss.{method.__name__}`", method.summary, method.paper]
        for name, method in ((name, ss.methods.get(name)) for name in ss.methods.names(kind))
    ]
    assert table(ROOT / "README.md", header) == expected
    assert all(
        getattr(ss, ss.methods.get(name).__name__) is ss.methods.get(name) for name in ss.methods.names(kind)
    )


def test_distributions_of_the_readme():
    rows = table(ROOT / "README.md", "distribution")
    assert [row[0].strip("`") for row in rows] == ss.distributions.names()


@pytest.mark.parametrize("name", ss.methods.names())
def test_card_says_what_the_code_says(name):
    """Sections in their order (findings wherever there are some), every default, the docstring's references."""
    page = ROOT / "docs" / "methods" / f"{name}.md"
    headings = re.findall(r"^## (.*)$", page.read_text(), re.MULTILINE)
    if "What was measured" in headings:
        headings.remove("What was measured")
    assert headings == [
        "Paper",
        "Signals and cost",
        "Hyper-parameters",
        "How to use",
        "Fidelity",
        "Inside a source",
        "Limits",
        "Cite",
    ]
    method = ss.methods.get(name)
    default = {field.name: field.default for field in fields(method)}
    shown = {row[0].strip("`"): row[1] for row in table(page, "hyper-parameter")}
    assert set(shown) == set(default)
    for key, value in default.items():
        if key != "density":
            spelled = f'`"{value}"`' if isinstance(value, str) else f"`{value}`"
            assert shown[key] == spelled, f"{name}.{key}: {shown[key]} is not {spelled}"
    links = re.findall(r"https://arxiv\.org/abs/[\d.]+\d", inspect.getdoc(method) or "")
    assert links
    assert all(link in page.read_text() for link in links)


def test_the_index_lists_every_page():
    index = (ROOT / "docs" / "README.md").read_text()
    for page in ROOT.glob("docs/**/*.md"):
        name = page.relative_to(ROOT / "docs").as_posix()
        assert name == "README.md" or f"({name})" in index, f"docs/README.md does not list {name}"


# -- CONTRIBUTING --------------------------------------------------------------------------------------------------


def test_line_counts_of_contributing():
    """The table of what the methods cost, counted again."""
    rows = {row[0].strip("`"): row[1:] for row in table(ROOT / "CONTRIBUTING.md", "method")}
    assert len(rows) >= 2
    for name, stated in rows.items():
        assert stated == [str(count) for count in _cost(name)], f"{name} costs {_cost(name)}"


def _cost(name: str) -> list[int]:
    """Lines of a method: class with its docstring, code alone, lines that register it, contract row, card."""
    method = ss.methods.get(name)
    source = textwrap.dedent(inspect.getsource(method))
    node = ast.parse(source).body[0]
    assert isinstance(node, ast.ClassDef)
    docstring = node.body[0]
    inside_docstring = range(docstring.lineno, (docstring.end_lineno or 0) + 1)
    code = [
        line
        for number, line in enumerate(source.splitlines(), 1)
        if line.strip() and number not in inside_docstring
    ]
    registers = [
        line
        for path in ("methods/__init__.py", "__init__.py")
        for line in (ROOT / "src" / "startsparse" / path).read_text().splitlines()
        if re.search(rf"import {method.__name__}\b", line)
    ]
    settings = ast.parse((ROOT / "tests" / "contract" / "settings.py").read_text())
    row = [
        (value.end_lineno or 0) - key.lineno + 1
        for found in ast.walk(settings)
        if isinstance(found, ast.Dict)
        for key, value in zip(found.keys, found.values, strict=True)
        if isinstance(key, ast.Constant) and key.value == name
    ]
    card = (ROOT / "docs" / "methods" / f"{name}.md").read_text().splitlines()
    return [len(source.splitlines()), len(code), len(registers) + 1, row[0], len(card)]
