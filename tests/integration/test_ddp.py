"""DistributedDataParallel over two processes: both ranks have the masks and weights of one process with all data."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from .ddp_worker import CASES, main

WORKER = Path(__file__).with_name("ddp_worker.py")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ddp")
    ranks = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(rank), "2", str(folder / "store"), str(folder / f"{rank}.pt")],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        main(0, 1, "", str(folder / "one.pt"))
        for process in ranks:
            _, errors = process.communicate(timeout=200)
            assert process.returncode == 0, errors
    finally:
        for process in ranks:
            process.kill()
            process.wait()
            process.stderr.close()
    return [torch.load(folder / f"{name}.pt", weights_only=True) for name in ("0", "1", "one")]


@pytest.mark.parametrize("case", CASES)
def test_ranks_agree_with_each_other_and_with_one_process(results, case):
    first, second, alone = (result[case] for result in results)
    for part in ("masks", "weights"):
        assert all(torch.equal(value, second[part][name]) for name, value in first[part].items())
    assert all(torch.equal(mask, alone["masks"][name]) for name, mask in first["masks"].items())
    for name, weight in first["weights"].items():
        torch.testing.assert_close(weight, alone["weights"][name])
    assert (first["moved"] > 0) is (not case.startswith("static"))
