"""Compares two result files: what became faster or slower, loop by loop.

``python benchmarks/compare.py before.json after.json``. A change counts only where the
rounds of the two runs do not overlap.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from report import number
from results import RATE, Cell, Measure, Results, load, measures_of
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


@dataclass(frozen=True)
class Change:
    """One cell that both files have.

    Attributes:
        before: the main figure of the row in the older file.
        after: the same in the newer one.
        what: what the figure is of.
        better: how much better it became; above 1 is faster, or less, now.
        rate: events a second after divided by before; NaN where nothing was timed.
        sure: whether the rounds of the two do not overlap.
    """

    row: str
    loop: str
    before: float
    after: float
    what: str
    better: float
    rate: float
    sure: bool


def changes(before: Results, after: Results, *, relative: bool) -> Iterator[Change]:
    """Pair up the cells of two runs.

    Args:
        before: the older run.
        after: the newer one.
        relative: divide by the reference loop's change on the row, which takes out
            what the machine itself does differently.
    """
    old_rows = {row.name: row for row in before.rows}
    for new in after.rows:
        old = old_rows.get(new.name)
        if old is None:
            continue
        main, *others = measures_of(new.group)
        second = RATE if RATE in others else None
        drift = drift_rate = 1.0
        if relative:
            a, b = old.cells.get(before.reference), new.cells.get(after.reference)
            if a is None or b is None or not (a.good and b.good):
                continue
            drift = gain(a, b, main)
            drift_rate = gain(a, b, second)
        for loop, cell in new.cells.items():
            was = old.cells.get(loop)
            if was is None or not (was.good and cell.good):
                continue
            one, two = was.spread(main.of), cell.spread(main.of)
            yield Change(
                new.title,
                loop,
                one.median,
                two.median,
                main.title,
                gain(was, cell, main) / drift,
                gain(was, cell, second) / drift_rate,
                one.high < two.low or two.high < one.low,
            )


def gain(before: Cell, after: Cell, measure: Measure | None) -> float:
    """How much better a figure became; NaN where there is none to divide by."""
    if measure is None:
        return math.nan
    old, new = before.spread(measure.of).median, after.spread(measure.of).median
    top, bottom = (new, old) if measure.more else (old, new)
    if top == bottom:
        return 1.0  # no call before, and none after
    return top / bottom if bottom > 0 else math.inf


def table_of(found: Sequence[Change], threshold: float) -> Table:
    """Show changes; those below the threshold or within the spread are dimmed."""
    table = Table(caption="x: above 1 is better than before; * beyond the spread")
    table.add_column("row")
    table.add_column("loop")
    table.add_column("what")
    for name in ("before", "after", "x", "x rate"):
        table.add_column(name, justify="right")
    for change in found:
        low = 1 / (1 + threshold)
        big = not low <= change.better <= 1 + threshold
        style = "dim"
        if big and change.sure:
            style = "green" if change.better > 1 else "red"
        mark = " *" if change.sure else ""
        table.add_row(
            change.row,
            change.loop,
            change.what,
            number(change.before),
            number(change.after),
            f"{change.better:.3f}{mark}",
            "-" if math.isnan(change.rate) else f"{change.rate:.3f}",
            style=style,
        )
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Run as a script.

    Returns:
        1 if a cell became slower than `--fail-over` allows, else 0.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--loops", help="comma-separated; default all")
    parser.add_argument(
        "--threshold", type=float, default=3, help="per cent worth a colour (3)"
    )
    parser.add_argument(
        "--fail-over", type=float, help="exit 1 if a cell is slower by more per cent"
    )
    parser.add_argument(
        "--relative",
        action="store_true",
        help="take out the change of the reference loop on each row",
    )
    args = parser.parse_args(arguments)
    try:
        before, after = load(args.before), load(args.after)
    except (OSError, ValueError) as exc:
        print(f"compare.py: {exc}", file=sys.stderr)
        return 2
    wanted = set(args.loops.split(",")) if args.loops else None
    found = [
        change
        for change in changes(before, after, relative=args.relative)
        if wanted is None or change.loop in wanted
    ]
    if not found:
        print("compare.py: the files have no cell in common", file=sys.stderr)
        return 2
    console = Console()
    console.print(table_of(found, args.threshold / 100))
    for loop in dict.fromkeys(change.loop for change in found):
        gains = [c.better for c in found if c.loop == loop and 0 < c.better < math.inf]
        mean = statistics.geometric_mean(gains) if gains else math.nan
        console.print(f"geometric mean, {loop}: {mean:.3f}", highlight=False)
    if args.fail_over is None:
        return 0
    limit = 1 / (1 + args.fail_over / 100)
    return 1 if any(c.sure and c.better < limit for c in found) else 0


if __name__ == "__main__":
    sys.exit(main())
