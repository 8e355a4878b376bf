"""Runs the benchmarks: the table, its JSON and its picture.

``python benchmarks/run.py --quick`` takes less than two minutes. This file reads
options and shows progress; `measure.py` measures, `report.py` and `plot.py` show.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from children import HERE
from clients import Clients
from loops import LOOPS, spec_of
from machine import describe
from measure import Bench, Plan, probe_loop
from plot import save_plot
from report import WIDTH, contenders, save_text, show
from results import Results
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rows import ROWS, Row, select

if TYPE_CHECKING:
    from collections.abc import Sequence

OUTPUT = HERE.parent / "build" / "benchmarks"
WARMUP = 0.25
"""Share of the duration that goes before it and does not count."""
QUICK_SECONDS = 85.0
"""What the measurements of `--quick` may take together."""
QUICK_DURATIONS = (0.03, 0.4)
"""Shortest and longest measurement of `--quick`, in seconds."""
START_COST = 0.35
"""Seconds that starting and ending one child takes, until it has been seen."""


class Pace:
    """Shares out the time of `--quick`: each row gets its part of what is left.

    What a row takes besides measuring (children that start, fixed counts) is learned
    from the rows before it, so that a slow machine measures for less time and not
    for longer than promised.
    """

    def __init__(self, bench: Bench, rows: int) -> None:
        self.bench = bench
        self.rows = rows
        self.end = time.monotonic() + QUICK_SECONDS
        self.overhead = START_COST * len(bench.loops)
        self.warmup = bench.plan.warmup / bench.plan.duration

    def next_row(self) -> None:
        """Set the duration of the next row's measurements."""
        plan = self.bench.plan
        measurements = len(self.bench.loops) * plan.rounds
        left = (self.end - time.monotonic()) / max(1, self.rows) - self.overhead
        low, high = QUICK_DURATIONS
        duration = min(high, max(low, left / measurements / (1 + self.warmup)))
        warmup = duration * self.warmup
        self.bench.plan = replace(plan, duration=duration, warmup=warmup)
        self.begun = time.monotonic()
        self.planned = (duration + warmup) * measurements

    def row_done(self) -> None:
        """Learn from the row that was measured."""
        self.rows -= 1
        seen = time.monotonic() - self.begun - self.planned
        self.overhead += (max(0.0, seen) - self.overhead) / 4


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--loops", help=f"comma-separated, of {', '.join(LOOPS)}, or module:factory")
    add("--rows", help="comma-separated names or globs, or 'server', 'micro'")
    add("--quick", action="store_true", help="within two minutes; fewer rows")
    add("--rounds", type=positive_int, help="of all loops (default 10, quick 3)")
    add("--duration", type=positive, help="seconds a measurement (default 0.5)")
    add(
        "--warmup",
        type=positive,
        help="seconds before it (default a quarter of it, at most 1)",
    )
    add("--connections", type=positive_int, default=100, help="default 100")
    add("--size", type=positive_int, default=1000, help="bytes, default 1000")
    add("--scale", type=positive, help="share of the counts of micro rows")
    add("--reference", default="uvloop", help="loop of the ratios (default uvloop)")
    add("--output", type=Path, default=OUTPUT, metavar="DIR", help="build/benchmarks")
    add("--list", action="store_true", help="list loops and rows, and end")
    return parser.parse_args(arguments)


def positive(text: str) -> float:
    """A number above 0."""
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError("must be above 0")
    return value


def positive_int(text: str) -> int:
    """A whole number above 0."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return value


def make_plan(args: argparse.Namespace) -> Plan:
    """Turn options into a plan."""
    rounds = args.rounds or (3 if args.quick else 10)
    duration = args.duration or 0.5
    return Plan(
        rounds=rounds,
        duration=duration,
        warmup=args.warmup or min(1.0, duration * WARMUP),
        connections=args.connections,
        size=args.size,
        fresh=not args.quick,
        scale=args.scale or (0.3 if args.quick else 1.0),
        bare=not args.quick,
    )


def probe_loops(names: Sequence[str], console: Console) -> dict[str, dict[str, str]]:
    """Ask each loop whether it works here."""
    found: dict[str, dict[str, str]] = {}
    for name in names:
        found[name] = probe_loop(name)
        if "missing" in found[name]:
            console.print(
                f"loop {name} is not measured: {found[name]['missing']}",
                markup=False,
                highlight=False,
                style="yellow",
            )
    return found


def measure_all(
    bench: Bench, rows: Sequence[Row], results: Results, pace: Pace | None
) -> None:
    """Measure row by row, with a progress bar where there is a terminal."""
    console = Console(stderr=True)
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        # drawing happens between measurements only: no thread that wakes up in one
        auto_refresh=False,
    )
    rounds = sum(min(bench.plan.rounds, row.rounds or 1 << 30) for row in rows)
    total = rounds * len(bench.loops)
    with progress:
        task = progress.add_task("starting", total=total)

        def step(text: str) -> None:
            progress.update(task, description=text, advance=1)
            progress.refresh()

        bench.step = step
        for row in rows:
            if pace is not None:
                pace.next_row()
            found = bench.measure(row)
            if pace is not None:
                pace.row_done()
            results.rows.append(found)
            bad = sum(cell.failed is not None for cell in found.cells.values())
            tail = f", {bad} failed" if bad else ""
            progress.console.print(f"done: {row.title}{tail}", highlight=False)


def run(args: argparse.Namespace) -> int:
    """Do what the options say.

    Returns:
        The exit status: 1 if a loop failed a row, asyncio and uvloop apart; else 0.
    """
    every = [name for name, spec in LOOPS.items() if not (spec.extra and args.quick)]
    names = [n.strip() for n in (args.loops or ",".join(every)).split(",") if n.strip()]
    for name in names:
        spec_of(name)
    rows = select(args.rows, quick=args.quick)
    needed = dict.fromkeys(row.package for row in rows if row.package)
    absent = [name for name in needed if importlib.util.find_spec(name) is None]
    rows = [row for row in rows if row.package not in absent]
    if not rows:
        raise ValueError(f"not installed: {', '.join(absent)}")
    args.output.mkdir(parents=True, exist_ok=True)
    loops = probe_loops(names, Console(stderr=True))
    working = [name for name in names if "missing" not in loops[name]]
    if not working:
        raise ValueError("none of the loops works here")
    reference = args.reference if args.reference in working else working[0]
    paced = args.quick and args.duration is None
    plan = make_plan(args)
    clients = Clients.build()
    bench = Bench(working, plan, clients, lambda text: None)
    options = {
        **vars(plan),
        "quick": args.quick,
        "paced": paced,
        "server_cpu": bench.server_cpu,
        "client_cpu": bench.client_cpu,
        "clients": clients.describe(),
        "client_notes": list(clients.notes),
    }
    options["client_notes"] += [
        f"rows that need {name} are not measured: it is not installed"
        for name in absent
    ]
    if reference != args.reference:
        options["client_notes"].append(
            f"{args.reference} is not here: ratios are to {reference}"
        )
    results = Results(describe(), options, loops, reference)
    pace = Pace(bench, len(rows)) if paced else None
    try:
        measure_all(bench, rows, results, pace)
    finally:
        bench.close()
    console = Console(emoji=False)
    if not console.is_terminal:
        console = Console(width=WIDTH, emoji=False)
    show(results, console)
    results.save(args.output / "results.json")
    save_text(results, args.output / "results.txt")
    save_plot(results, args.output / "results.png")
    console.print(f"saved: {args.output}/results.json, .txt and .png", highlight=False)
    ours = contenders(results)
    cells = [row.cells[loop] for row in results.rows for loop in ours]
    failed = any(not cell.good for cell in cells)
    return 1 if failed else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run as a script."""
    args = parse(arguments)
    if args.list:
        print("loops:", ", ".join(LOOPS))
        for row in ROWS:
            quick = "quick" if row.quick else ""
            print(f"{row.name:22} {row.group:7} {quick:6} {row.title}")
        return 0
    try:
        return run(args)
    except ValueError as exc:
        print(f"run.py: {exc}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: nothing was saved", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
