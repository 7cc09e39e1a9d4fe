"""The runner of claims: what is kept, skipped, refused and judged. And every claim there is can be loaded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CLAIMS = Path(__file__).parents[2] / "benchmarks" / "claims"
SCRIPT = """
import os
TITLE, SOURCE = "One is less than two", "arithmetic"
def runs():
    return [{"x": x, "seed": seed} for seed in range(2) for x in (1, 2)]
def run(x, seed):
    if (x, seed) == (2, 1) and not os.environ.get("MENDED"):
        raise RuntimeError("it broke")
    return {"value": x + seed, "threads": os.environ["OMP_NUM_THREADS"], "process": os.getpid()}
def judge(records):
    return f"PASS: {[r['result']['value'] for r in records]}"
"""


@pytest.fixture
def modules(monkeypatch):
    """The runner's modules, importable as the runner imports them."""
    monkeypatch.syspath_prepend(str(CLAIMS))
    before = set(sys.modules)
    import claim
    import records

    yield claim, records
    for name in set(sys.modules) - before:
        if name in ("claim", "records", "environment", "common", "page") or name.startswith("claim_"):
            del sys.modules[name]


@pytest.fixture
def root(tmp_path):
    (tmp_path / "less").mkdir()
    (tmp_path / "less" / "claim.py").write_text(SCRIPT)
    return tmp_path


def runner(root, *arguments, **environment):
    command = [sys.executable, str(CLAIMS), *arguments, "--root", str(root)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, check=False)


def test_from_nothing_to_a_verdict(root):
    first = runner(root, "less", "--workers", "2")
    assert first.returncode == 1 and "RuntimeError: it broke" in first.stderr
    file = root / "less" / "records.jsonl"
    found = [json.loads(line) for line in file.read_text().splitlines()]
    assert sorted(record["result"]["value"] for record in found) == [1, 2, 2]
    assert {record["result"]["threads"] for record in found} == {"1"}
    assert len({record["result"]["process"] for record in found}) == 3
    assert {"params", "result", "seconds", "claim", "version", "commit"} <= set(found[0])
    assert "**INCOMPLETE**: 1 of 4 runs are missing." in (root / "less" / "verdict.md").read_text()

    with open(file, "a") as torn:
        torn.write('{"params": {"x": 2, "se')
    second = runner(root, "less", MENDED="1")
    assert second.returncode == 0 and "1 runs to do, 3 of 4 done" in second.stdout
    lines = file.read_text().splitlines()
    assert [json.loads(line) for line in lines[:3]] == found and len(lines) == 4
    verdict = (root / "less" / "verdict.md").read_text()
    assert "PASS: [1, 2, 2, 3]" in verdict and "INCOMPLETE" not in verdict and "Source: arithmetic" in verdict
    made = json.loads((root / "less" / "environment.json").read_text())
    assert made["runs"] == 4 and made["torch"] and made["claim"] == found[0]["claim"]

    listed = runner(root, "list")
    assert "One is less than two (4 of 4 runs)" in listed.stdout and "PASS: [1, 2, 2, 3]" in listed.stdout


def test_a_limit_and_an_unknown_claim(root):
    done = runner(root, "less", "mor", "--limit", "1")
    assert done.returncode == 1 and "no claim 'mor'" in done.stderr
    assert len((root / "less" / "records.jsonl").read_text().splitlines()) == 1


def test_two_at_one_claim(root, modules):
    _, records = modules
    again = records.lock(root / "less")
    with records.lock(root / "less"), pytest.raises(records.Busy, match="another process is at less"):
        again.__enter__()
    with records.lock(root / "less"):
        pass


def test_a_damaged_line_is_named(root, modules):
    _, records = modules
    file = root / "less" / "records.jsonl"
    file.write_text('{"params": {}, "result": {}}\nnonsense\n')
    with pytest.raises(records.RecordsError, match=r"records.jsonl:2 is no record"):
        records.read(file)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("def judge", "def jugde", "does not define judge"),
        ('"seed": seed}', '"sed": seed}', "a run has no seed"),
        ("for x in (1, 2)", "for x in (1, 1)", "names a run twice"),
    ],
)
def test_scripts_that_lack_something(root, modules, old, new, says):
    claim, _ = modules
    (root / "less" / "claim.py").write_text(SCRIPT.replace(old, new))
    with pytest.raises(ValueError, match=says):
        claim.load("less", root)


def test_every_claim_can_be_loaded(modules):
    claim, _ = modules
    names = claim.names(CLAIMS)
    assert len(names) >= 7
    for name in names:
        loaded = claim.load(name, CLAIMS)
        assert loaded.title and loaded.source and loaded.runs
        assert json.loads(json.dumps(loaded.runs)) == loaded.runs
        if not loaded.missing() and (loaded.folder / "verdict.md").exists():
            assert loaded.verdicts(), f"{name} has a verdict that says nothing"


def test_the_page_of_evidence_says_what_the_verdicts_say(modules):
    from page import page

    assert (CLAIMS.parents[1] / "docs" / "evidence.md").read_text() == page(CLAIMS)
