"""The suites at tiny sizes: that every row is whole and sane; not how fast anything is."""

from __future__ import annotations

import json
import math
import shutil
import time
from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F

from startsparse import kernels
from startsparse.benchmarking import memory, suites, timing
from startsparse.benchmarking.timing import Options
from startsparse.benchmarking.torch_csr import CsrLinear
from startsparse.cli.main import main

TINY = Options(seconds=0.0, sizes=(16,), batches=(3,), sparsities=(0.5, 0.9))
FIGURES = {
    "linear": {"dense ms", "masked", "torch-csr", "drop-in", "native", "dropped"},
    "conv": {"dense ms", "masked", "drop-in", "native", "dropped"},
    "pointwise": {"dense ms", "masked", "drop-in", "native", "dropped"},
    "steps": {"dense ms", "masked 0.5", "sparse 0.5", "sparse 0.9", "dropped"},
    "updates": {"step ms", "update step ms", "% over 100", "% over 100, CPU", "updates"},
    "inference": {"dense ms", "sparse ms", "dense / sparse", "dropped"},
    "memory": {"peak MiB", "less than dense", "seconds"},
}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def sane(row: dict, figures: set[str]) -> None:
    """All figures are there, and could be times, ratios or shares."""
    assert figures <= set(row)
    assert all(math.isfinite(row[name]) for name in figures)
    assert all(row[name] > 0 for name in figures - {"dropped", "% over 100", "% over 100, CPU", "peak MiB"})
    assert 0 <= row.get("dropped", 0) <= 1


@pytest.mark.parametrize("suite", [name for name in suites.SUITES if name != "memory"])
def test_a_suite(suite):
    rows = list(suites.run(suite, TINY))
    assert len(rows) == {"steps": 1, "updates": 4}.get(suite, 2)
    for row in rows:
        sane(row, FIGURES[suite])
        assert row["batch"] == 3
    json.dumps(rows)
    assert set(suites.SUMMARIES) == set(suites.SUITES) == set(FIGURES)


def test_memory_of_a_process_each():
    dense, sparse = memory.rows(Options(sizes=(1500,), batches=(4,), sparsities=(0.99,), quick=True))
    for row in (dense, sparse):
        sane(row, FIGURES["memory"])
    assert dense["less than dense"] == 1
    assert dense["peak MiB"] > 3 * 1500 * 1500 * 4 * 3 / 2**20  # weights and two moments at least
    assert sparse["less than dense"] > 1


def test_a_case_that_fails_says_so(monkeypatch):
    monkeypatch.setattr(memory.sys, "executable", shutil.which("false"))
    with pytest.raises(RuntimeError, match="'sparse' failed"):
        memory._in_a_process("sparse", 1, 0.9, 1)


def test_pre_empted_samples_are_dropped(monkeypatch):
    slow = iter(range(10**6))
    count = [0]

    def sometimes_disturbed() -> None:
        if next(slow) % 2:
            count[0] += 1
            time.sleep(0.005)

    monkeypatch.setattr(timing, "_preemptions", lambda: count[0])
    times = timing.measure({"it": sometimes_disturbed}, Options(seconds=0.2, cold=True))
    assert times.seconds["it"] < 0.004 and 0.3 < times.dropped < 0.7


def test_rows_against_the_better_dense_one():
    times = timing.Times({"nchw": 2.0, "nhwc": 1.0, "ours": 0.25}, 0.5)
    assert times.against("nchw", "nhwc") == {"dense ms": 1000.0, "ours": 4.0, "dropped": 0.5}


def test_the_rival_of_torch_computes_the_same():
    torch.manual_seed(0)
    mask = (torch.rand(7, 5) < 0.5).float()
    weight = torch.randn(7, 5) * mask
    x, bias = torch.randn(5, 4, requires_grad=True), torch.randn(7, requires_grad=True)
    csr = CsrLinear(weight, mask)
    values = csr.values.clone().requires_grad_()
    y = csr(x, values, bias)
    wanted = F.linear(x.t(), weight, bias).t()
    torch.testing.assert_close(y, wanted)
    dy = torch.randn_like(y)
    found = torch.autograd.grad(y, (x, values, bias), dy)
    full = weight.clone().requires_grad_()
    dx, dw, db = torch.autograd.grad(F.linear(x.t(), full, bias).t(), (x, full, bias), dy)
    for one, other in zip(found, (dx, dw[mask.bool()], db), strict=True):
        torch.testing.assert_close(one, other)


def test_rivals_are_measured_where_they_are_installed():
    columns = set(next(iter(suites.run("linear", TINY))))
    for library in ("sparseprop", "sparselab"):
        assert (library in columns) == bool(find_spec(library))


def test_the_command(monkeypatch, capsys):
    monkeypatch.setattr(
        kernels, "keep_pages", lambda: None
    )  # it lasts as long as the process, which is the tests'
    command = [
        "bench",
        "linear",
        "updates",
        "--size",
        "16",
        "--batch",
        "2",
        "--sparsity",
        "0.9",
        "--seconds",
        "0",
    ]
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["suites"]) == {"linear", "updates"} and found["environment"]["threads"] == 1
    sane(found["suites"]["linear"][0], FIGURES["linear"])
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "drop-in" in out and "threads 1" in out and "\nrigl " in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["lineal"], "no suite 'lineal': there are linear, conv"),
        (["linear", "--sparsity", "90"], "such as 0.9"),
        (["linear", "--batch", "0"], "--batch must be at least 1"),
        (["linear", "--threads", "0"], "--threads must be at least 1"),
    ],
)
def test_bad_arguments(words, message, capsys):
    assert main(["bench", *words]) == 2
    assert message in capsys.readouterr().err
