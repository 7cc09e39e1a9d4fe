"""The bars of the compact file at 95 % sparsity, by the benchmark that claims them."""

import importlib.util
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "file_size.py"
spec = importlib.util.spec_from_file_location("benchmarks_file_size", SCRIPT)
assert spec is not None and spec.loader is not None
benchmark = importlib.util.module_from_spec(spec)
spec.loader.exec_module(benchmark)


@pytest.mark.parametrize(("net", "drawn"), benchmark.BARS)
def test_the_file_is_as_small_as_promised(net, drawn, tmp_path):
    torch.manual_seed(0)
    dense, compact = benchmark.sizes(benchmark.NETS[net](), "erk", drawn, tmp_path)
    assert compact <= benchmark.BARS[net, drawn] * dense
