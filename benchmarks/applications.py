"""Runs application libraries on each loop: HTTP, WebSocket, PostgreSQL.

``python benchmarks/applications.py --quick`` takes less than two minutes. This file
reads options and shows progress; `application_measure.py` measures. The result files
have the format of `run.py`'s.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from application_measure import ApplicationBench, missing
from application_rows import APPLICATIONS, select
from children import ChildFailed
from loops import LOOPS, spec_of
from machine import describe
from measure import Plan
from report import WIDTH, contenders, save_text, show
from results import Results
from rich.console import Console
from run import OUTPUT, WARMUP, Pace, measure_all, positive, positive_int, probe_loops

if TYPE_CHECKING:
    from collections.abc import Sequence

    from application_rows import Application

DEFAULT_LOOPS = ("asyncio", "uvloop", "rloop", "aioqemu-epoll", "aioqemu-io_uring")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--loops", help=f"comma-separated, of {', '.join(LOOPS)}, or module:factory")
    add("--rows", help="comma-separated names or globs")
    add("--quick", action="store_true", help="within two minutes")
    add("--rounds", type=positive_int, help="of all loops (default 7, quick 3)")
    add("--duration", type=positive, help="seconds a measurement (default 1)")
    add("--connections", type=positive_int, default=64, help="default 64")
    add("--size", type=positive_int, default=1000, help="WebSocket bytes, default 1000")
    add("--reference", default="uvloop", help="loop of the ratios (default uvloop)")
    add("--output", type=Path, default=OUTPUT, metavar="DIR", help="build/benchmarks")
    add("--list", action="store_true", help="list rows, and end")
    return parser.parse_args(arguments)


def versions(rows: Sequence[Application]) -> dict[str, str]:
    """Which version of each library is measured."""
    names = dict.fromkeys(name for row in rows for name in row.packages)
    return {name: importlib.metadata.version(name) for name in names}


def run(args: argparse.Namespace) -> int:
    """Do what the options say.

    Returns:
        The exit status: 1 if a loop failed a row, other projects' apart; else 0.
    """
    chosen = args.loops or ",".join(
        name for name in DEFAULT_LOOPS if not (args.quick and LOOPS[name].extra)
    )
    names = [name.strip() for name in chosen.split(",") if name.strip()]
    for name in names:
        spec_of(name)
    notes: list[str] = []
    rows: list[Application] = []
    for row in select(args.rows):
        reason = missing(row)
        if reason is None:
            rows.append(row)
        else:
            notes.append(f"{row.title} is not measured: {reason}")
    if not rows:
        raise ValueError("; ".join(notes))
    args.output.mkdir(parents=True, exist_ok=True)
    loops = probe_loops(names, Console(stderr=True))
    working = [name for name in names if "missing" not in loops[name]]
    if not working:
        raise ValueError("none of the loops works here")
    reference = args.reference if args.reference in working else working[0]
    if reference != args.reference:
        notes.append(f"{args.reference} is not here: ratios are to {reference}")
    duration = args.duration or 1.0
    plan = Plan(
        rounds=args.rounds or (3 if args.quick else 7),
        duration=duration,
        warmup=duration * WARMUP,
        connections=args.connections,
        size=args.size,
        fresh=not args.quick,
    )
    bench = ApplicationBench(working, plan, lambda text: None)
    paced = args.quick and args.duration is None
    drivers = {"http": "wrk", "websocket": "Python", "postgres": "itself"}
    options = {
        **vars(plan),
        "quick": args.quick,
        "paced": paced,
        "server_cpu": bench.server_cpu,
        "client_cpu": bench.client_cpu,
        "clients": {**drivers, **versions(rows)},
        "client_notes": notes,
    }
    results = Results(describe(), options, loops, reference)
    try:
        pace = Pace(bench, len(rows)) if paced else None
        measure_all(bench, rows, results, pace)
    finally:
        bench.close()
    console = Console(emoji=False)
    if not console.is_terminal:
        console = Console(width=WIDTH, emoji=False)
    show(results, console)
    results.save(args.output / "applications.json")
    save_text(results, args.output / "applications.txt")
    console.print(f"saved: {args.output}/applications.json, .txt", highlight=False)
    cells = [row.cells[loop] for row in results.rows for loop in contenders(results)]
    return 1 if any(not cell.good for cell in cells) else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run as a script."""
    args = parse(arguments)
    if args.list:
        for row in APPLICATIONS:
            print(f"{row.name:18} {row.title:34} {missing(row) or ''}")
        return 0
    try:
        return run(args)
    except (ValueError, ChildFailed) as exc:
        print(f"applications.py: {exc}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: nothing was saved", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
