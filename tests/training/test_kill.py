"""Three of the kills of ``kill_twenty.py``, for real: other processes, SIGKILL."""

import runpy
import signal
from pathlib import Path

import pytest


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
def test_killed_is_never_stopped(tmp_path):
    script = runpy.run_path(str(Path(__file__).with_name("kill_twenty.py")))
    hits, different = script["compare"](tmp_path, kills=3, steps=400, seed=1, spread=0.3)
    assert hits == 3 and different == []
