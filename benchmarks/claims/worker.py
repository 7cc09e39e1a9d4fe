"""One run of a claim in a process of its own: parameters in as JSON, the result out as JSON into a file.

python worker.py ROOT NAME PARAMS OUT
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from claim import load


def main() -> None:
    """Run it."""
    root, name, params, out = sys.argv[1:]
    claim = load(name, Path(root))
    begin = time.perf_counter()
    result = claim.run(**json.loads(params))
    seconds = round(time.perf_counter() - begin, 3)
    Path(out).write_text(json.dumps({"result": result, "seconds": seconds, "claim": claim.digest}))


if __name__ == "__main__":
    main()
