"""Micro rows as a program: what one event costs where no client is needed.

``python micro.py ROW --loop NAME --count N`` runs a row once with a fixed count and
prints JSON; with valgrind or strace in front of it, two counts give the cost of one
event as a difference. ``--serve`` keeps the process for `measure.py`, which runs all
loops in turn. What the rows do is in `micro_rows.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import faulthandler
import gc
import json
import os
import sys
import time
from typing import Any

from clock import Clock, mark_next
from counted_rows import COUNTED, DEFAULT
from loops import make_loop
from micro_rows import Loop, Micro, micro_of
from rows import ROWS, row_named


def run_once(
    function: Micro, loop: Loop, count: int, *, marks: bool = False
) -> dict[str, Any]:
    """Run a row once.

    Returns:
        ``{"events", "cpu_ns", "wall_ns"}``
    """
    clock = Clock(marks=marks)
    gc.collect()
    if marks:
        mark_next()
    function(loop, count, clock)
    return {"events": count, "cpu_ns": clock.cpu_ns, "wall_ns": clock.wall_ns}


def run_counted(function: Micro, loop: Loop, counts: list[int]) -> dict[str, Any]:
    """Run a row once for each count, with the marks that tracers cut at."""
    for count in counts:
        run_once(function, loop, count, marks=True)
    return {"counts": counts}


def run_for(function: Micro, loop: Loop, count: int, seconds: float) -> dict[str, Any]:
    """Run a row with the same count again until `seconds` are full, at least once."""
    end = time.monotonic() + seconds
    total = run_once(function, loop, count)
    while time.monotonic() < end:
        for key, value in run_once(function, loop, count).items():
            total[key] += value
    return total


def serve(function: Micro, loop: Loop) -> None:
    """Answer ``COUNT SECONDS`` lines with JSON lines until standard input ends."""
    print(json.dumps({"pid": os.getpid()}), flush=True)
    for line in sys.stdin:
        count, seconds = line.split()
        found = run_for(function, loop, int(count), float(seconds))
        print(json.dumps(found), flush=True)


def main() -> int:
    """Run as a script."""
    names = [row.name for row in ROWS if row.group == "micro"] + list(COUNTED)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("row", choices=names)
    parser.add_argument("--loop", default="asyncio")
    parser.add_argument("--count", type=int, help="events (default: the row's own)")
    parser.add_argument(
        "--marked", metavar="N,N,...", help="run these counts, marked for a tracer"
    )
    parser.add_argument("--cpu", type=int, help="core to run on")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    faulthandler.enable()
    loop = make_loop(args.loop)
    asyncio.set_event_loop(loop)  # Python 3.11 looks here for its child watcher
    if args.cpu is not None:
        os.sched_setaffinity(0, {args.cpu})
    function = micro_of(args.row, args.loop)
    if args.serve:
        serve(function, loop)
    elif args.marked:
        counts = [int(word) for word in args.marked.split(",")]
        print(json.dumps(run_counted(function, loop, counts)))
    else:
        count = args.count or DEFAULT.get(args.row) or row_named(args.row).count
        found = run_once(function, loop, count)
        print(json.dumps({"row": args.row, "loop": args.loop, **found}))
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
