#!/usr/bin/env python3
"""Instructions of one event, counted by callgrind and held against a baseline.

    python benchmarks/instructions.py                 # compare; 1 if a row rose by 3 %
    python benchmarks/instructions.py --record        # make today's the baseline
    python benchmarks/instructions.py --loop uvloop   # look at another loop, no more

A row runs in a process of its own, with two counts of events several times over; the
difference of the smallest figures, divided by that of the counts, is one event. Only
what is between two marks is counted (`clock.py`), so that neither the start nor what a
row prepares is in it. Figures are kept for each interpreter, compiler and machine:
other ones say nothing about a change here.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import clock
from children import HERE, describe

BASELINE = HERE / "baseline" / "instructions.json"
RECORD = HERE.parent / "build" / "benchmarks" / "instructions.json"
LOOP = "aioqemu-epoll"  # one backend, and the one that valgrind knows
ALLOWED = 0.03
TIMES = 2
TIMEOUT = 100.0
ROWS: dict[str, tuple[int, int]] = {
    "call_soon_chain": (500, 5500),
    "call_soon_1000": (2000, 12000),
    "create_task": (300, 2300),
    "future_from_callback": (300, 2300),
    "timers_fire": (1000, 6000),
    "sock_recv_wait": (200, 1200),
    "echo_protocol": (200, 1200),
    "echo_streams": (200, 1200),
    "echo_own_streams": (200, 1200),
    "udp_burst": (200, 2200),
}
"""The rows of `micro.py` that are counted, and their two counts."""


class NotCounted(Exception):
    """A row has no figure; says why."""


def refusal() -> str | None:
    """Why nothing can be counted here, or None."""
    missing = [name for name in ("valgrind", "setarch") if shutil.which(name) is None]
    return f"not installed: {', '.join(missing)}" if missing else None


def key() -> str:
    """What a figure depends on besides the sources: interpreter, compilers, machine.

    The interpreter's own build is in it by a digest of its flags and of the files
    themselves, so that one of the same version from elsewhere has figures of its own.
    """
    words = ("CONFIG_ARGS", "CFLAGS")
    flags = "".join(str(sysconfig.get_config_var(name)) for name in words)
    library = sysconfig.get_config_var("INSTSONAME") or ""
    shared = Path(sysconfig.get_config_var("LIBDIR") or "") / library
    program = Path(os.path.realpath(sys.executable))
    digest = hashlib.sha256(flags.encode())
    for path in (program, shared):
        if path.is_file():
            digest.update(path.read_bytes())
    return ", ".join(
        (
            f"{platform.python_implementation()} {platform.python_version()}",
            f"build {digest.hexdigest()[:8]}",
            _compiler(),
            " ".join(platform.libc_ver()),
            platform.machine(),
        )
    )


def _compiler() -> str:
    """The compiler that the package is built with, which need not be Python's own."""
    done = subprocess.run(
        [os.environ.get("CC", "cc"), "-dumpfullversion"],
        capture_output=True,
        text=True,
        check=False,
    )
    return f"cc {done.stdout.strip() or 'unknown'}"


def totals(stem: Path) -> list[int]:
    """Read what callgrind wrote: the instructions between each pair of marks."""
    found: dict[int, int] = {}
    for path in stem.parent.glob(f"{stem.name}.*"):
        text = path.read_text()
        trigger = re.search(r"^desc: Trigger: --dump-before=(\w+)$", text, re.MULTILINE)
        if trigger is not None and trigger[1] == clock.END:
            total = re.search(r"^totals: (\d+)$", text, re.MULTILINE)
            assert total is not None
            found[int(path.suffix[1:])] = int(total[1])
    return [found[number] for number in sorted(found)]


def count(row: str, loop: str) -> float:
    """Count one row.

    Returns:
        Instructions of one event.

    Raises:
        NotCounted: the program failed, or made other marks than it should.
    """
    few, many = ROWS[row]
    runs = [few, *(few, many) * TIMES]  # the first warms up
    with tempfile.TemporaryDirectory(prefix="aioqemu-instructions-") as folder:
        stem = Path(folder, "out")
        words = ["setarch", "-R", "valgrind", "--tool=callgrind"]
        words += [f"--callgrind-out-file={stem}"]
        words += [f"--dump-before={name}" for name in (clock.BEGIN, clock.END)]
        words += [sys.executable, str(HERE / "micro.py"), row, "--loop", loop]
        words += ["--marked", ",".join(map(str, runs))]
        # Where the environment ends, the stack begins: the same one in every run.
        env = {"PATH": os.defpath, "PYTHONHASHSEED": "0", "HOME": "/nonexistent"}
        try:
            done = subprocess.run(
                words,
                env=env,
                capture_output=True,
                text=True,
                timeout=TIMEOUT,
                check=False,
            )
        except subprocess.TimeoutExpired as exc:
            raise NotCounted(f"not over within {TIMEOUT:g} s") from exc
        if done.returncode:
            raise NotCounted(describe(done.returncode, done.stderr))
        shares = _shares(totals(stem), runs)
    return (min(shares[2::2]) - min(shares[1::2])) / (many - few)


def _shares(found: list[int], runs: list[int]) -> list[int]:
    """Add up the stretches of each run: a row may stop the clock between batches."""
    if len(found) == len(runs):
        return found
    batch = sum(runs) // len(found) if found else 0
    if not batch or any(run % batch for run in runs) or batch * len(found) != sum(runs):
        raise NotCounted(f"{len(found)} stretches between marks, for runs of {runs}")
    rest = iter(found)
    return [sum(next(rest) for _ in range(run // batch)) for run in runs]


def count_all(rows: list[str], loop: str) -> tuple[dict[str, float], dict[str, str]]:
    """Count rows, as many at once as there are cores; the figures do not mind.

    Returns:
        Instructions of an event for each row, and why others have none.
    """
    found: dict[str, float] = {}
    failed: dict[str, str] = {}
    subprocess.run(  # what it imports is compiled once, and not in one of the rows
        [sys.executable, str(HERE / "micro.py"), "sleep_0", "--loop", loop],
        stdout=subprocess.DEVNULL,
        check=True,
    )
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        jobs = {row: pool.submit(count, row, loop) for row in rows}
        for row, job in jobs.items():
            try:
                found[row] = job.result()
            except NotCounted as exc:
                failed[row] = str(exc)
    return found, failed


def load(path: Path) -> dict[str, dict[str, float]]:
    """Read baselines; none is an empty one."""
    found: dict[str, dict[str, float]] = (
        json.loads(path.read_text()) if path.exists() else {}
    )
    return found


def save(path: Path, under: str, found: dict[str, float]) -> None:
    """Put figures beside those of other interpreters."""
    path.parent.mkdir(parents=True, exist_ok=True)
    everything = load(path)
    rounded = {row: round(value, 1) for row, value in found.items()}
    everything[under] = everything.get(under, {}) | rounded
    path.write_text(json.dumps(everything, indent=1, sort_keys=True) + "\n")


def compare(found: dict[str, float], before: dict[str, float]) -> list[str]:
    """Print the table.

    Returns:
        The rows that rose by more than is allowed.
    """
    risen: list[str] = []
    print(f"{'instructions of one event':28}{'now':>10}{'before':>10}{'change':>9}")
    for row, value in found.items():
        was = before.get(row)
        line = f"{row:28}{value:10.0f}"
        if was:
            change = value / was - 1
            line += f"{was:10.0f}{change:+9.1%}"
            if change > ALLOWED:
                risen.append(row)
                line += "  RISEN"
            elif change < -ALLOWED:
                line += "  below: to be recorded, or a rise up to there passes"
        print(line)
    return risen


def main() -> int:
    """Run as a script."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", action="store_true", help="make it the baseline")
    parser.add_argument("--rows", help="comma-separated (default: all)")
    parser.add_argument("--loop", default=LOOP, help=f"default {LOOP}")
    parser.add_argument("--baseline", type=Path, default=BASELINE)
    args = parser.parse_args()
    rows = args.rows.split(",") if args.rows else list(ROWS)
    if unknown := [row for row in rows if row not in ROWS]:
        parser.error(f"no row {', '.join(unknown)}: there are {', '.join(ROWS)}")
    if args.record and args.loop != LOOP:
        parser.error(f"the baseline is of {LOOP}")
    if (reason := refusal()) is not None:
        print(f"instructions are not counted here: {reason}")
        return 0
    under = key()
    found, failed = count_all(rows, args.loop)
    before = load(args.baseline).get(under, {}) if args.loop == LOOP else {}
    risen = compare(found, before)
    for row, reason in failed.items():
        print(f"{row}: no figure, {reason}")
    if args.record:
        save(args.baseline, under, found)
        print(f"recorded for {under}")
    elif args.loop == LOOP and not before:
        save(RECORD, under, found)
        print(
            f"NO BASELINE for {under}: nothing is compared, recorded in {RECORD.name}"
        )
        print("of build/benchmarks; `python3 dev.py instructions --record` makes one")
    elif risen:
        print(f"more than {ALLOWED:.0%} above the baseline: {', '.join(risen)}")
    return 1 if failed or (risen and not args.record) else 0


if __name__ == "__main__":
    sys.exit(main())
