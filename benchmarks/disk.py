#!/usr/bin/env python3
"""The disk rows: aioqemu's engines beside everybody else, on one file, in one run.

    python benchmarks/disk.py --quick
    python benchmarks/disk.py --rows 'direct-read-*' --rounds 5

Each round runs all contenders of a row one after the other, each in a process of its
own, in an order that rotates. The figure is the median; the brackets are the lowest and
the highest round. `fio` and `qemu-img bench` do the same transfers with their own code.
Who is missing, or cannot do a row, is listed with the reason.
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib.metadata
import json
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import machine
from results import CPU, RATE, Cell, Measure, Results, RowResult, rate

HERE = Path(__file__).resolve().parent
MIB = 1 << 20
CONTENDERS = (
    "aioqemu:io_uring",
    "aioqemu:linux_aio",
    "aioqemu:threads",
    "executor",
    "aiofiles",
    "caio:linux_uring",
    "caio:linux_aio",
    "caio:thread_aio",
    "turbofile",
    "urio",
    "os",
    "fio",
    "qemu-img",
)
NULL_CONTENDERS = ("future", "aioqemu:null", "qemu-img")


@dataclass(frozen=True)
class Row:
    """One row of the table."""

    name: str
    direct: bool = False
    write: bool = False
    size: int = 4096
    depth: int = 32
    null: bool = False

    def count(self, quick: bool) -> int:
        """How many transfers: about a second's worth of the slower ones."""
        if self.null:
            return 50_000 if quick else 200_000
        amount = 8000 if self.size == 4096 else 256
        if self.write or self.depth == 1:
            amount //= 2
        return amount // 2 if quick else amount


ROWS = (
    Row("null", null=True),
    *(
        Row(
            f"{'direct' if direct else 'cached'}-{'write' if write else 'read'}"
            f"-{'4k' if size == 4096 else '1m'}-{depth}",
            direct,
            write,
            size,
            depth,
        )
        for direct in (False, True)
        for write in (False, True)
        for size in (4096, MIB)
        for depth in (1, 32, 128)
    ),
)
QUICK = ("null", "cached-read-4k-32", "cached-read-1m-32", "direct-read-4k-32")


def fio(row: Row, file: Path, count: int) -> dict[str, float]:
    """Let fio do the row, at random places as the others."""
    words = ["fio", "--name=row", f"--filename={file}", "--output-format=json"]
    words += [f"--rw={'randwrite' if row.write else 'randread'}", "--norandommap"]
    words += [f"--bs={row.size}", f"--iodepth={row.depth}", "--ioengine=io_uring"]
    words += [f"--direct={int(row.direct)}", f"--io_size={count * row.size}"]
    words += ["--invalidate=0", f"--size={file.stat().st_size}"]
    found = json.loads(_checked(words))["jobs"][0]
    side = found["write" if row.write else "read"]
    runtime = side["runtime"] * 1e6  # ms
    share = found["usr_cpu"] + found["sys_cpu"]
    iops = side["iops"] or float("nan")
    wall = side["total_ios"] / iops * 1e9
    return {
        "events": side["total_ios"],
        "wall_ns": wall,
        "cpu_ns": runtime * share / 100,
    }


def qemu_img(row: Row, file: Path, count: int) -> dict[str, float]:
    """Let qemu-img do the row; in a row, it knows no random places."""
    words = ["qemu-img", "bench", "-c", str(count), "-d", str(row.depth), "-f", "raw"]
    words += ["-s", str(row.size)]
    if row.null:
        words.append("null-co://")
    else:
        words += ["-t", "none" if row.direct else "writeback", "-i", "io_uring"]
        words += ["-S", str(row.size * 37)]
        words += ["-w"] if row.write else []
        words.append(str(file))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    told = _checked(words)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    seconds = float(told.split("completed in ")[1].split()[0])
    return {"events": count, "wall_ns": seconds * 1e9, "cpu_ns": cpu * 1e9}


def _checked(words: list[str]) -> str:
    if shutil.which(words[0]) is None:
        raise RuntimeError(f"{words[0]} is not installed")
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=120, check=False
    )
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["failed"]
        raise RuntimeError(lines[-1])
    return done.stdout


def measure(name: str, row: Row, file: Path, count: int) -> dict[str, float]:
    """One contender, one row, once.

    Raises:
        RuntimeError: it is missing or cannot do it; says why.
    """
    if name == "fio":
        return fio(row, file, count)
    if name == "qemu-img":
        return qemu_img(row, file, count)
    options = {
        "file": str(file),
        "direct": row.direct,
        "write": row.write,
        "size": row.size,
        "depth": row.depth,
        "count": count,
    }
    script = str(HERE / "disk_peers.py")
    words = [sys.executable, "-W", "ignore", script, name, json.dumps(options)]
    found: dict[str, float] = json.loads(_checked(words))
    return found


def run_row(
    row: Row, file: Path, names: tuple[str, ...], options: argparse.Namespace
) -> dict[str, Cell]:
    """All rounds of a row; one that fails says why, and is not asked again."""
    cells = {name: Cell() for name in names}
    for turn in range(options.rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            cell = cells[name]
            if cell.failed is not None:
                continue
            try:
                found = measure(name, row, file, row.count(options.quick))
            except (RuntimeError, ValueError, subprocess.TimeoutExpired) as exc:
                cell.failed = str(exc)
            else:
                cell.rounds.append(found)
    return cells


def _shown(cell: Cell, of: Measure, scale: float) -> str:
    spread = cell.spread(of.of)
    middle, low, high = (x * scale for x in (spread.median, spread.low, spread.high))
    return f"{middle:10.2f} [{low:.2f}, {high:.2f}]"


def show(row: Row, cells: dict[str, Cell]) -> None:
    """Print one row, the quickest first."""
    print(f"\n{row.name}: thousands of transfers a second; CPU us of each")
    there = {name: cell for name, cell in cells.items() if cell.good}
    for name, cell in sorted(there.items(), key=lambda x: -x[1].spread(rate).median):
        rates, cpu = _shown(cell, RATE, 1e-3), _shown(cell, CPU, 1)
        print(f"  {name:18} {rates:32} {cpu}", flush=True)


def version_of(name: str) -> str:
    """Which version of a contender is here, "-" if it is not."""
    package = name.partition(":")[0]
    if package in ("fio", "qemu-img"):
        words = [package, "--version"]
        try:
            found = re.search(r"\d+(\.\d+)+", _checked(words))
        except RuntimeError:
            return "-"
        return found[0] if found is not None else "-"
    if package in ("os", "executor", "future"):
        return platform.python_version()
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "-"


def make_file(folder: Path, size: int) -> Path:
    """A file that is all data, and in the page cache."""
    path = folder / "image"
    with path.open("wb") as f:
        for _ in range(size // MIB):
            f.write(os.urandom(MIB))
        f.flush()
        os.fsync(f.fileno())
    return path


def main() -> int:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description="The disk rows.")
    parser.add_argument("--quick", action="store_true", help="a few rows, 3 rounds")
    parser.add_argument("--rows", help="patterns, separated by commas")
    parser.add_argument("--contenders", help="names, separated by commas")
    parser.add_argument("--rounds", type=int, default=None)
    parser.add_argument("--folder", help="on the disk to be measured (/var/tmp)")
    parser.add_argument("--size", type=int, default=256, help="of the file, in MiB")
    parser.add_argument("--output", default="build/benchmarks/disk.json")
    options = parser.parse_args()
    options.rounds = options.rounds or (3 if options.quick else 5)
    patterns = options.rows.split(",") if options.rows else None
    if patterns is None:
        patterns = list(QUICK) if options.quick else ["*"]
    rows = [r for r in ROWS if any(fnmatch.fnmatch(r.name, p) for p in patterns)]
    if not rows:
        parser.error("no row is called so; there are " + " ".join(r.name for r in ROWS))
    wanted = options.contenders.split(",") if options.contenders else None
    given = {"rounds": options.rounds, "quick": options.quick, "size_mib": options.size}
    names = dict.fromkeys((*NULL_CONTENDERS, *CONTENDERS))
    loops = {name: {"version": version_of(name)} for name in names}
    results = Results(machine.describe(), given, loops, "aiofiles")
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir=options.folder or "/var/tmp") as folder:
        file = make_file(Path(folder), options.size * MIB)
        for row in rows:
            taking: tuple[str, ...] = NULL_CONTENDERS if row.null else CONTENDERS
            if wanted is not None:
                taking = tuple(n for n in taking if n in wanted)
            cells = run_row(row, file, taking, options)
            show(row, cells)
            results.rows.append(
                RowResult(row.name, row.name, "disk", "transfer", cells)
            )
    failures: dict[str, list[str]] = {}
    for result in results.rows:
        for name, cell in result.cells.items():
            if cell.failed is not None:
                failures.setdefault(f"{name}: {cell.failed}", []).append(result.name)
    if failures:
        print("\nno figure:")
        for reason, where in failures.items():
            print(f"  {reason}\n      ({', '.join(where)})")
    output = Path(options.output)
    results.save(output)
    print(f"\n{time.monotonic() - began:.0f} s; {output}")
    ours = [reason for reason in failures if reason.startswith("aioqemu")]
    return 1 if any("CannotError" not in reason for reason in ours) else 0


if __name__ == "__main__":
    sys.exit(main())
