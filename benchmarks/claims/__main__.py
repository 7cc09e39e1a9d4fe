"""Run claims: train what is missing, keep the raw records, judge.

python benchmarks/claims NAME [NAME ...] [--workers N] [--limit K] [--only-judge]
python benchmarks/claims list
python benchmarks/claims page     # writes docs/evidence.md
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import environment
from claim import Claim, load, names
from page import page
from records import Busy, RecordsError, append, lock, replace

HERE = Path(__file__).resolve().parent
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


def main(argv: list[str] | None = None) -> int:
    """Run or list; returns 1 if anything could not be run or judged. A claim that fails its bar is a result."""
    parser = argparse.ArgumentParser(prog="claims", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="+", metavar="NAME", help="claims, or: list, page, all")
    parser.add_argument("--workers", type=int, default=1, help="runs at once (default: %(default)s)")
    parser.add_argument("--limit", type=int, help="at most so many new runs of each claim")
    parser.add_argument("--only-judge", action="store_true", help="judge the records there are")
    parser.add_argument("--root", type=Path, default=HERE, help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    if given.names == ["list"]:
        show(given.root)
        return 0
    if given.names == ["page"]:
        replace(environment.REPOSITORY / "docs" / "evidence.md", page(given.root))
        return 0
    wanted = names(given.root) if given.names == ["all"] else given.names
    well = [work(name, given) for name in wanted]  # all of them, also after one that failed
    return int(not all(well))


def show(root: Path) -> None:
    """Every claim, how far it is, and what its verdict says."""
    for name in names(root):
        claim = load(name, root)
        print(f"{name}: {claim.title} ({len(claim.records())} of {len(claim.runs)} runs)")
        for line in claim.verdicts() or ["not judged yet"]:
            print(f"  {line}")


def work(name: str, given: argparse.Namespace) -> bool:
    """Run what is missing of one claim and judge it; whether all went well."""
    try:
        claim = load(name, given.root)
        with lock(claim.folder):
            well = given.only_judge or run_missing(claim, given.workers, given.limit)
            return judge(claim) and well
    except (Busy, RecordsError, ValueError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return False


def run_missing(claim: Claim, workers: int, limit: int | None) -> bool:
    """Each missing run in a process of its own, its record kept as soon as it is done; whether none failed."""
    missing = claim.missing()[:limit]
    print(
        f"{claim.name}: {len(missing)} runs to do, {len(claim.records())} of {len(claim.runs)} done",
        flush=True,
    )
    if not missing:
        return True
    stamp = {"version": environment.version("startsparse"), "commit": environment.commit()}
    failed, begin = 0, time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        running = {pool.submit(run_one, claim, params): params for params in missing}
        try:
            for number, future in enumerate(as_completed(running), start=1):
                params, record = running[future], future.result()
                if "error" in record:
                    failed += 1
                    print(
                        f"{claim.name}: FAILED {json.dumps(params)}\n{record['error']}",
                        file=sys.stderr,
                        flush=True,
                    )
                else:
                    append(claim.records_file, {"params": params} | record | stamp)
                    left = (time.perf_counter() - begin) / number * (len(missing) - number)
                    print(
                        f"{claim.name}: {number}/{len(missing)} in {record['seconds']:.1f} s, about {left / 60:.0f} min "
                        f"left: {json.dumps(params)} -> {json.dumps(record['result'])[:200]}",
                        flush=True,
                    )
        except KeyboardInterrupt:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return failed == 0


def run_one(claim: Claim, params: dict[str, Any]) -> dict[str, Any]:
    """One run in a fresh process: its result and seconds, or what went wrong."""
    data = os.environ.get("STARTSPARSE_DATA") or str(environment.REPOSITORY.parent / "shared" / "data")
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "result.json"
        command = [sys.executable, str(HERE / "worker.py"), str(claim.folder.parent), claim.name]
        done = subprocess.run(
            [*command, json.dumps(params), str(out)],
            env=os.environ | ONE_THREAD | {"STARTSPARSE_DATA": data},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode or not out.exists():
            return {"error": f"exit code {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-8000:]}"}
        return json.loads(out.read_text())


def judge(claim: Claim) -> bool:
    """Write verdict.md and environment.json from the records there are; whether the judge could."""
    records = claim.records()
    if not records:
        print(f"{claim.name}: no records, nothing to judge")
        return True
    try:
        text = claim.judge(records)
    except Exception as error:  # noqa: BLE001 - the judge is the claim's own code: whatever it raises is for its author
        print(
            f"{claim.name}: {len(records)} of {len(claim.runs)} runs could not be judged: {error!r}",
            file=sys.stderr,
        )
        if claim.missing():
            return True  # some judges need all of them
        traceback.print_exc()
        return False
    made = environment.describe()
    made["commit"] = ", ".join(sorted({record["commit"] for record in records}))
    made["claim"] = ", ".join(sorted({record["claim"] for record in records}))
    made["runs"], made["seconds"] = len(records), round(sum(record["seconds"] for record in records))
    replace(claim.folder / "environment.json", json.dumps(made, indent=2) + "\n")
    replace(claim.folder / "verdict.md", verdict(claim, text, made))
    print(f"\n{text}\n\n{claim.name}: verdict in {claim.folder / 'verdict.md'}")
    return True


def verdict(claim: Claim, text: str, made: dict[str, str | int]) -> str:
    """The page: claim, source, what was found, and with what."""
    lacking = len(claim.runs) - int(made["runs"])
    note = f"\n**INCOMPLETE**: {lacking} of {len(claim.runs)} runs are missing.\n" if lacking else ""
    return (
        f"# {claim.title}\n\nSource: {claim.source}\n{note}\n{text.strip()}\n\n---\n\n"
        f"{made['runs']} runs, {int(made['seconds']) / 60:.1f} CPU minutes on one thread each; startsparse "
        f"{made['startsparse']} ({made['commit']}), torch {made['torch']}, Python {made['python']}, "
        f"{made['processor']}. Script {made['claim']}. Again: `python benchmarks/claims {claim.name}`.\n"
    )


if __name__ == "__main__":
    sys.exit(main())
