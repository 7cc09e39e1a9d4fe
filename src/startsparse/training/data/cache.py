"""Where derived data are kept: a folder of the user, never beside the data."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/startsparse``, or ``~/.cache/startsparse``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "startsparse"
