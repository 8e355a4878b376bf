#!/usr/bin/env python3
"""Makes docs/benchmarks.md and its plots of the results that are in benchmarks/results.

    python benchmarks/page.py             # make the page and the plots
    python benchmarks/page.py --check     # 1 if they are not what the results give

Results come from run.py, system_calls.py, memory.py, applications.py and disk.py. What
is missing is said on the page. Nothing is measured here, and a check needs no package.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from budgets import budgets
from machine import warnings
from page_plots import PLOTS, Plot, digest_in, draw
from page_tables import (
    absences,
    disk_table,
    figures,
    lines_of,
    losses,
    means,
    other_rows,
    the_floor,
    the_table,
)
from results import Results, load

if TYPE_CHECKING:
    from collections.abc import Sequence

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
DOCS = HERE.parent / "docs"
FOLDER = "benchmarks"
"""Of the plots, beside the page."""


@dataclass(frozen=True)
class Source:
    """A file of results.

    Attributes:
        name: of the file, without its ending.
        verb: of dev.py, that makes it.
        what: is in it.
        timed: whether a busy machine, or a slow interpreter, would show in it.
    """

    name: str
    verb: str
    what: str
    timed: bool = True


SOURCES = (
    Source("results", "bench", "CPU time, rates and latencies of all loops"),
    Source("system_calls", "calls", "system calls of an event", timed=False),
    Source("memory", "memory", "memory of connections, timers and tasks", timed=False),
    Source("applications", "applications", "HTTP, WebSocket and PostgreSQL libraries"),
    Source("disk", "disk", "block requests"),
)
INTRODUCTION = """
# Benchmarks

Made by `python3 dev.py page` of the results in `benchmarks/results`; not edited by
hand. How it is measured, and how to repeat it, is in `benchmarks/README.md`.

A ratio is uvloop's, or the named peer's, CPU time of an event divided by ours; where
something else is measured (memory, transfers a second, a latency) it is turned so that
**above 1 is better than the peer** too. Figures are medians over the rounds; all loops
of a row ran in turn.
"""
TABLE = """
## What is to be reached, and what is

Sorted by the ratio, the worst first. *Calls* are system calls of one event in steady
state, of ours on epoll / on io_uring. A ratio is reached if the best backend reaches it
and none that `auto` can pick (epoll, io_uring) is below 1. The *best peer* is the one
that leaves us least ahead.
"""
OTHERS = """
### Rows that have nothing to reach

But on no backend that `auto` can pick is one to be below 1.
"""
DISK = """
### Block requests

By the engine, which a block device has whatever the loop's backend: `io_uring` where
the kernel allows it, else `linux_aio` for direct files and `threads` for others.
"""
MEANS = """
## Geometric mean of the ratios to uvloop

Over the rows of the loops themselves; where something else than CPU time is measured
(the spinning thread: a latency; adaptive polling: a rate), over that. The last columns
leave those rows out, and take the applications in. Spawning with 1 GiB in use is in
none.
"""

FLOOR = """
## Beside a server without a loop

A server in C that makes the same system calls and does nothing else
(`client/bare_server.c`): what no loop can go below. The first figure is uvloop's time
divided by its.
"""


def digest_of(path: Path) -> str:
    """A short name for the content of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def read(folder: Path) -> dict[str, Results]:
    """Read what there is, in the order of the page."""
    paths = {source.name: folder / f"{source.name}.json" for source in SOURCES}
    return {name: load(path) for name, path in paths.items() if path.exists()}


def conditions(files: dict[str, Results]) -> list[str]:
    """On what it was measured; said once where it is the same for all."""
    lines: dict[str, list[str]] = {}
    for name, results in files.items():
        env = results.environment
        python = env["python"]
        built = "with" if python["optimised"] else "WITHOUT"
        text = (
            f"{env['cpu']}, {env['cores']} cores, Linux {env['kernel']}, "
            f"{env['libc']}, {python['implementation']} {python['version']} "
            f"({python['compiler']}, "
            f"{built} profile-guided optimisation)"
        )
        lines.setdefault(text, []).append(f"{name} on {env['date'][:10]}")
    found = [f"* {text}: {', '.join(where)}." for text, where in lines.items()]
    versions: dict[str, str] = {}
    timed = {source.name for source in SOURCES if source.timed}
    for name, results in files.items():
        for loop, about in results.loops.items():
            if about.get("version", "-") != "-":
                versions.setdefault(loop, about["version"])
        if name == "applications":
            versions |= results.options.get("clients", {})
    if versions:
        pairs = ", ".join(f"{name} {version}" for name, version in versions.items())
        found.append(f"* Versions: {pairs}.")
    for name, results in files.items():
        told = warnings(results.environment) if name in timed else []
        found += [f"* Mind, of {name}: {text}." for text in told]
        if rounds := results.options.get("rounds"):
            found.append(f"* Rounds of {name}: {rounds}.")
        for again in results.environment.get("measured_again", []):
            rows = ", ".join(again["rows"])
            when = f"Linux {again['kernel']}, {again['date'][:10]}"
            if load := again.get("load_at_start"):
                when += f", load {load[0]:.1f} when it started"
            found.append(f"* Measured again on {when}: {rows}.")
    return [*found, ""]


def picture(name: str, files: dict[str, Results]) -> list[str]:
    """A plot with its sentence; nothing where it has no results."""
    [plot] = [plot for plot in PLOTS if plot.name == name]
    if not drawable(plot, files):
        return []
    return [plot.sentence, "", f"![{plot.title}]({FOLDER}/{name}.svg)", ""]


def drawable(plot: Plot, files: dict[str, Results]) -> bool:
    """Whether there is something to draw."""
    return plot.source in files and bool(plot.rows(files[plot.source]))


def section(
    files: dict[str, Results], name: str, title: str, text: str, *, scale: float = 1.0
) -> list[str]:
    """All figures of a file, with its plots."""
    found = [f"## {title}", ""]
    if name not in files:
        [source] = [source for source in SOURCES if source.name == name]
        return [*found, f"Not measured yet: `python3 dev.py {source.verb}`.", ""]
    for plot in PLOTS:
        if plot.source == name:
            found += picture(plot.name, files)
    return [*found, text, "", *figures(files[name], scale=scale)]


def page(files: dict[str, Results]) -> str:
    """The text of the page."""
    found = [*INTRODUCTION.strip().splitlines(), "", "## Measured on", ""]
    found += conditions(files)
    missing = [source for source in SOURCES if source.name not in files]
    if missing:
        told = "; ".join(f"{s.what} (`python3 dev.py {s.verb}`)" for s in missing)
        found += [f"**Not measured yet**: {told}.", ""]
    lines = lines_of(budgets(), files)
    found += [*TABLE.strip().splitlines(), "", *the_table(lines)]
    found += [*OTHERS.strip().splitlines(), "", *other_rows(lines)]
    found += [*DISK.strip().splitlines(), "", *disk_table(lines)]
    found += [*MEANS.strip().splitlines(), ""]
    if "results" in files:
        found += means(lines, files["results"])
    else:
        found += ["Not measured yet.", ""]
    found += [*FLOOR.strip().splitlines(), "", *the_floor(lines)]
    found += ["## Where uvloop is ahead", "", *losses(lines)]
    found += section(
        files,
        "results",
        "All loops",
        "CPU time of an event in microseconds; in brackets uvloop's divided by it.",
    )
    found += section(
        files,
        "applications",
        "Applications",
        "CPU time of a request in microseconds; in brackets uvloop's divided by it.",
    )
    found += section(
        files,
        "memory",
        "Memory",
        "Bytes of each, as a process grows by thousands of them; in brackets uvloop's "
        "divided by it. What the kernel keeps is not in it.",
    )
    found += section(
        files,
        "disk",
        "Block requests",
        "Thousands of transfers a second; in brackets divided by those of aiofiles.",
        scale=1e-3,
    )
    found += section(
        files,
        "system_calls",
        "System calls",
        "Of an event, in steady state, on all loops. How threads wait for each other "
        "is not in it.",
    )
    found += ["## Who was not measured", "", *absences(files)]
    return "\n".join(found).rstrip("\n") + "\n"


def differences(results: Path, docs: Path) -> list[str]:
    """What is not as the results give it; empty where all is."""
    files = read(results)
    text = docs / "benchmarks.md"
    found: list[str] = []
    if not text.exists() or text.read_text() != page(files):
        found.append(text.name)
    wanted = {plot.file(docs / FOLDER): plot for plot in PLOTS if drawable(plot, files)}
    for path, plot in wanted.items():
        source = results / f"{plot.source}.json"
        if not path.exists() or digest_in(path) != digest_of(source):
            found.append(f"{FOLDER}/{path.name}")
    there = set((docs / FOLDER).glob("*")) if (docs / FOLDER).exists() else set()
    return found + [f"{FOLDER}/{path.name}" for path in sorted(there - set(wanted))]


def write(results: Path, docs: Path) -> None:
    """Make the page and all plots, and remove those that have no results."""
    files = read(results)
    docs.mkdir(parents=True, exist_ok=True)
    (docs / "benchmarks.md").write_text(page(files))
    for plot in PLOTS:
        path = plot.file(docs / FOLDER)
        if drawable(plot, files):
            digest = digest_of(results / f"{plot.source}.json")
            draw(plot, files[plot.source], digest, path)
        else:
            path.unlink(missing_ok=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run as a script."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--docs", type=Path, default=DOCS)
    args = parser.parse_args(arguments)
    if not args.check:
        write(args.results, args.docs)
        print(args.docs / "benchmarks.md")
        return 0
    found = differences(args.results, args.docs)
    if found:
        print(f"not what the results give: {', '.join(found)}; python3 dev.py page")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
