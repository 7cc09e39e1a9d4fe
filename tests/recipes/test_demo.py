"""The demo, one epoch of it, where no data are to be had: on digits, and it says so."""

import runpy
import sys
from pathlib import Path

import pytest

from startsparse.kernels import cache_folder

DEMO = Path(__file__).resolve().parents[2] / "examples" / "demo.py"


@pytest.mark.filterwarnings("ignore:rigl will never update")
def test_one_epoch_on_the_fallback(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.setenv("STARTSPARSE_DATA", str(tmp_path))
    monkeypatch.setenv("STARTSPARSE_CACHE", str(cache_folder()))  # the kernels that are built already
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["demo.py", "--epochs", "1", "--out", str(tmp_path / "nets")])
    runpy.run_path(str(DEMO), run_name="__main__")
    out = capsys.readouterr().out
    assert "FALLING BACK to the data set 'digits' instead of 'fashion-mnist'" in " ".join(out.split())
    table = [line for line in out.splitlines() if line.startswith("│")]
    assert [line.split("│")[1].strip() for line in table] == [
        "dense",
        "static random (ERK)",
        "RigL in random 30 %",
        "SNIP",
        "RigL, truly sparse",
    ]
    assert [line.split("│")[3].strip() for line in table] == ["50,200", "2,510", "2,510", "2,510", "2,510"]
    assert len(list((tmp_path / "nets").glob("*.sparse.safetensors"))) == 5
