"""Shows results: the table, what is slower, what failed, the means.

Prints with rich to the terminal, and the same as plain text to a file. It measures
nothing and changes nothing.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from loops import LOOPS
from machine import warnings
from results import (
    Cell,
    Results,
    RowResult,
    Spread,
    client_busy,
    cpu_us,
    latency,
    rate,
    server_busy,
)
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from pathlib import Path

WIDTH = 132


def number(value: float) -> str:
    """Three significant digits or so."""
    if math.isnan(value):
        return "-"
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def with_spread(spread: Spread) -> str:
    """Median, and in brackets the extremes."""
    extremes = f"{number(spread.low)}-{number(spread.high)}"
    return f"{number(spread.median)} [dim]({extremes})[/]"


def coloured(ratio: Spread | None, *, spread: bool) -> str:
    """A ratio, green above 1 and red below."""
    if ratio is None:
        return "-"
    colour = "green" if ratio.median >= 1 else "red"
    text = f"[{colour}]{ratio.median:.2f}[/]"
    if spread:
        text += f" [dim]({ratio.low:.2f}-{ratio.high:.2f})[/]"
    return text


def the_table(results: Results) -> Table:
    """All rows, all loops, failures included."""
    reference = results.reference
    table = Table(
        title="CPU time is the server's (micro rows: the process's) per message",
        caption=f"x CPU: {reference}'s CPU time / the loop's; x rate: the loop's "
        f"messages a second / {reference}'s. Above 1 is faster than {reference}. "
        "Medians, (min-max) of the rounds. busy: share of a core, server/client.",
    )
    table.add_column("row")
    table.add_column("loop", no_wrap=True)
    for name in ("CPU us/msg", "msgs/s", "p50 us", "p99 us", "busy"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("x CPU", justify="right", no_wrap=True)
    table.add_column("x rate", justify="right", no_wrap=True)
    for row in results.rows:
        title = row.title
        for loop, cell in row.cells.items():
            table.add_row(title, loop, *_cells(row, loop, cell, reference))
            title = ""
        table.add_section()
    return table


def _cells(row: RowResult, loop: str, cell: Cell, reference: str) -> list[str]:
    if not cell.good:
        return ["[bold red]FAILED[/]", "-", "-", "-", "-", "-", "-"]
    own = loop == reference
    busy = f"{cell.spread(server_busy).median:.0%}"
    client = cell.spread(client_busy).median
    if not math.isnan(client):
        busy += f"/{client:.0%}"
    return [
        with_spread(cell.spread(cpu_us)),
        number(cell.spread(rate).median),
        number(cell.spread(latency("p50_us")).median),
        number(cell.spread(latency("p99_us")).median),
        busy,
        "[dim]1[/]" if own else coloured(row.cpu_ratio(loop, reference), spread=True),
        "[dim]1[/]" if own else coloured(row.rate_ratio(loop, reference), spread=False),
    ]


def contenders(results: Results) -> list[str]:
    """The loops whose losses are listed: ours, and those that the caller brought."""
    peers = {name for name, spec in LOOPS.items() if not spec.ours}
    return [name for name in results.measured if name not in peers]


def losses(results: Results) -> list[str]:
    """Every cell in which a contender is slower than the reference.

    Those beyond the spread of the rounds come first, the worst first.
    """
    found: list[tuple[bool, float, str]] = []
    for row in results.rows:
        for loop in contenders(results):
            cpu = row.cpu_ratio(loop, results.reference)
            speed = row.rate_ratio(loop, results.reference)
            if cpu is None or speed is None:
                continue
            worst = min(cpu.median, speed.median)
            if loop != results.reference and worst < 1:
                unsure = cpu.high >= 1 and speed.high >= 1
                text = (
                    f"{row.title}, {loop}: CPU {cpu.median:.2f} "
                    f"({cpu.low:.2f}-{cpu.high:.2f}), rate {speed.median:.2f} "
                    f"({speed.low:.2f}-{speed.high:.2f})"
                    f"{', within the spread' if unsure else ''}"
                )
                found.append((unsure, worst, text))
    return [text for _, _, text in sorted(found)]


def failures(results: Results) -> list[str]:
    """Every row that a loop failed, with its reason, and every odd ending."""
    found: list[str] = []
    for row in results.rows:
        for loop, cell in row.cells.items():
            if cell.failed is not None:
                found.append(f"{row.title}, {loop}: {cell.failed}")
            elif cell.note is not None:
                found.append(f"{row.title}, {loop}: measured; {cell.note}")
    return found


def means_table(results: Results) -> Table:
    """Geometric means of the ratios to the reference."""
    table = Table(title=f"Geometric mean of the ratios to {results.reference}")
    table.add_column("loop")
    for name in ("x CPU, servers", "x CPU, micro", "x CPU, all", "x rate, all"):
        table.add_column(name, justify="right")
    table.add_column("rows CPU less", justify="right")
    table.add_column("rows CPU more", justify="right")
    table.add_column("rows failed", justify="right")
    for loop in results.measured:
        cells: list[str] = []
        for group, rates in (
            ("server", False),
            ("micro", False),
            (None, False),
            (None, True),
        ):
            mean = results.geometric_mean(loop, group, rates=rates)
            cells.append("-" if mean is None else _coloured_mean(mean[0]))
        ratios = [row.cpu_ratio(loop, results.reference) for row in results.rows]
        counts = (
            sum(ratio is not None and ratio.median > 1 for ratio in ratios),
            sum(ratio is not None and ratio.median < 1 for ratio in ratios),
            sum(not row.cells[loop].good for row in results.rows if loop in row.cells),
        )
        table.add_row(loop, *cells, *map(str, counts))
    return table


def _coloured_mean(value: float) -> str:
    return f"[{'green' if value >= 1 else 'red'}]{value:.2f}[/]"


def how_long(options: dict[str, Any]) -> str:
    """How long one measurement took."""
    if options["paced"]:
        return "as long as fits (--quick)"
    return f"{options['duration']:g} s"


def header(results: Results) -> list[str]:
    """Machine, interpreter, loops, in a few lines."""
    env, options = results.environment, results.options
    python = env["python"]
    built = "optimised" if python["optimised"] else "not optimised"
    clients = ", ".join(f"{key}: {val}" for key, val in options["clients"].items())
    lines = [
        f"{env['cpu']}, {env['cores']} cores, Linux {env['kernel']}, "
        f"{python['implementation']} {python['version']} ({built}), {env['date']}",
        f"{options['connections']} connections of {options['size']} bytes unless the "
        f"row says otherwise; {options['rounds']} rounds of {how_long(options)}, "
        "all loops in turn; server on core "
        f"{options['server_cpu']}, client on {options['client_cpu']}",
        f"clients: {clients}",
    ]
    for name, found in results.loops.items():
        if "missing" in found:
            lines.append(f"loop {name}: NOT MEASURED, {found['missing']}")
        else:
            lines.append(f"loop {name}: {found['class']}, version {found['version']}")
    lines += [f"note: {text}" for text in options["client_notes"]]
    lines += [f"mind: {text}" for text in warnings(env)]
    return lines


def show(results: Results, console: Console) -> None:
    """Print everything."""
    for line in header(results):
        console.print(escape(line), highlight=False)
    console.print(the_table(results))
    reference = results.reference
    ours = contenders(results)
    if reference in results.measured and ours:
        slow = losses(results)
        console.print(f"[bold]Slower than {reference}[/] ({len(slow)} cells)")
        for line in slow or ["none"]:
            console.print(f"  {escape(line)}", highlight=False)
    elif not ours:
        missing = [name for name in LOOPS if LOOPS[name].ours]
        console.print(f"None of {', '.join(missing)} was measured: nothing to compare")
    failed = failures(results)
    console.print(f"[bold]Failed rows[/] ({len(failed)})")
    for line in failed or ["none"]:
        console.print(f"  {escape(line)}", highlight=False)
    console.print(means_table(results))


def save_text(results: Results, path: Path) -> None:
    """Write what `show` prints to a file, without colours."""
    with path.open("w") as file:
        show(results, Console(file=file, width=WIDTH, no_color=True, emoji=False))
