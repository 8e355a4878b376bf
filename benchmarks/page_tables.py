"""The tables of the page: budgets beside what was measured. Markdown, and no more.

Knows results and budgets, but no files, no plots and no program that measured. A ratio
is above 1 where ours is better, whatever is measured.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from loops import spec_of
from results import CPU, P99, RATE, Cell, Measure, Results, RowResult, measures_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from budgets import Budget

UVLOOP = "uvloop"
PREFIX = "aioqemu-"
BACKENDS = ("epoll", "io_uring", "poll")
AUTOMATIC = ("epoll", "io_uring")
"""What `auto` can pick: on these no row is to be below 1."""
BARE = "C"
"""A server without a loop (`client/bare_server.c`)."""
NO_PEERS = ("os", "future", "fio", "qemu-img", BARE)
"""What is measured beside the loops and libraries, and is none for asyncio."""
OUR_DISK = "aioqemu:"
NOTHING = "–"
UNKNOWN = "the reason is not known"
SOURCES = ("row", "application", "memory", "disk")


def number(value: float) -> str:
    """Three significant digits or so."""
    if math.isnan(value):
        return NOTHING
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> list[str]:
    """Make a table; the first column is text, the others are figures."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    rows = [head, rule, *lines]
    return ["| " + " | ".join(row) + " |" for row in rows] + [""]


def is_ours(name: str) -> bool:
    """Whether a loop, or a contender of the disk rows, is this project's."""
    if ":" in name or name in NO_PEERS:
        return name.startswith(OUR_DISK)
    try:
        return spec_of(name).ours
    except ValueError:
        return False


@dataclass
class Line:
    """One row of the table.

    Attributes:
        budget: what it may cost.
        kind: of which file the row is.
        result: the row that was measured, None where it was not.
        calls: system calls of an event, by loop.
        measure: what the ratios are of.
    """

    budget: Budget
    kind: str = "results"
    result: RowResult | None = None
    calls: dict[str, float] = field(default_factory=dict)
    measure: Measure = CPU

    def ours(self) -> list[str]:
        """The loops or engines of ours that have a figure."""
        cells = self.result.cells if self.result is not None else {}
        return [name for name, cell in cells.items() if cell.good and is_ours(name)]

    def peers(self) -> list[str]:
        """The others that have one, as far as they do the same thing."""
        cells = self.result.cells if self.result is not None else {}
        return [
            name
            for name, cell in cells.items()
            if cell.good and not is_ours(name) and name not in NO_PEERS
        ]

    def ratio(self, name: str, to: str) -> float:
        """How much better ours is; NaN where one has no figure."""
        assert self.result is not None
        found = self.result.ratio(name, to, self.measure)
        return math.nan if found is None else found.median

    def best(self, to: str) -> float:
        """The ratio of our best backend, NaN without a figure."""
        found = [self.ratio(name, to) for name in self.ours()]
        return max((value for value in found if value == value), default=math.nan)

    def best_peer(self) -> str | None:
        """The peer that is hardest to beat."""
        ratios = {peer: self.best(peer) for peer in self.peers()}
        known = {peer: value for peer, value in ratios.items() if value == value}
        return min(known, key=known.__getitem__, default=None)

    @property
    def rank(self) -> float:
        """What the table is sorted by: the ratio to uvloop, or to the peers named."""
        targets = self.budget.to or {UVLOOP: 1.0}
        found = [self.best(UVLOOP)] if UVLOOP in targets else []
        found = found or [self.best(peer) for peer in targets]
        known = [value for value in found if value == value]
        return min(known, default=math.inf)

    def calls_of_ours(self) -> float | None:
        """The most of a backend that `auto` can pick, or of an engine; or None."""
        backends = {PREFIX + name for name in AUTOMATIC}
        found = [
            count
            for name, count in self.calls.items()
            if name in backends or (is_ours(name) and self.kind == "disk")
        ]
        return max(found, default=None)

    def shortfalls(self) -> list[str]:
        """What is not reached; empty where all is, or where nothing is known."""
        budget, found = self.budget, []
        calls = self.calls_of_ours()
        if calls is not None and budget.calls is not None:
            if calls > budget.calls + budget.tolerance:
                found.append("calls")
        for peer, wanted in budget.to.items():
            best = self.best(peer)
            if best < wanted:
                text = number(best)
                if float(text) >= wanted:
                    text = f"{best:.4f}"
                whose = "" if peer == UVLOOP else f" x {peer}"
                found.append(f"{text} of {wanted:g}{whose}")
        for backend in AUTOMATIC:
            name = PREFIX + backend
            if name in self.ours() and self.ratio(name, UVLOOP) < 1:
                found.append(f"{backend} below 1")
        return found

    def verdict(self) -> str:
        """Reached or not, in a word or two."""
        if self.result is None or not self.ours():
            return "not measured"
        missing = [peer for peer in self.budget.to if math.isnan(self.best(peer))]
        if missing and len(missing) == len(self.budget.to):
            return f"{', '.join(missing)} not measured"
        short = self.shortfalls()
        if short:
            return "**no**: " + ", ".join(short)
        if missing:
            return f"yes, but {', '.join(missing)} not measured"
        return "yes" if self.steady() else "yes, but not in each round"

    def steady(self) -> bool:
        """Whether the best backend reached every ratio in the worst of its rounds."""
        assert self.result is not None
        for peer, wanted in self.budget.to.items():
            ratios = [self.result.ratio(n, peer, self.measure) for n in self.ours()]
            if max((r.low for r in ratios if r is not None), default=wanted) < wanted:
                return False
        return True

    def price(self) -> str:
        """Of a rate: the share of a core that it takes, ours and uvloop's."""
        if self.result is None or self.measure is not RATE:
            return ""
        found: list[str] = []
        for name in (PREFIX + "epoll", PREFIX + "io_uring", UVLOOP):
            cell = self.result.cells.get(name)
            if cell is not None and cell.good:
                used = cell.spread(CPU.of).median * cell.spread(RATE.of).median / 1e6
                found.append(f"{name.removeprefix(PREFIX)} {used:.0%}")
        return f"of a core it takes: {', '.join(found)}" if found else ""


def lines_of(budgets: Sequence[Budget], files: dict[str, Results]) -> list[Line]:
    """Put each budget beside what was measured, the worst first.

    Rows that were measured and have no budget are lines too.
    """
    rows = {kind: {row.name: row for row in files[kind].rows} for kind in files}
    lines: list[Line] = []
    for budget in budgets:
        kind, name = source_of(budget)
        line = Line(budget, kind, rows.get(kind, {}).pop(name, None))
        if line.result is not None:
            main = measures_of(line.result.group)[0]
            line.measure = {"p99": P99, "rate": RATE}.get(budget.measure, main)
        counted = {row.name: row for row in _rows_of(files, "system_calls")}
        if (count := counted.get(budget.counted_row)) is not None:
            line.calls = {
                name: _calls(cell, budget.names)
                for name, cell in count.cells.items()
                if cell.good
            }
        lines.append(line)
    for kind in ("results", "applications", "memory", "disk"):
        lines += [
            Line(type(budgets[0])(row.title), kind, row, {}, measures_of(row.group)[0])
            for row in rows.get(kind, {}).values()
        ]
    return sorted(lines, key=lambda line: (line.result is None, line.rank))


def _rows_of(files: dict[str, Results], kind: str) -> list[RowResult]:
    return files[kind].rows if kind in files else []


def _calls(cell: Cell, names: Sequence[str]) -> float:
    if names:
        each: dict[str, float] = cell.extra.get("calls", {})
        return sum(each.get(name, 0.0) for name in names)
    return cell.rounds[0]["calls"]


def source_of(budget: Budget) -> tuple[str, str]:
    """In which file a budget's row is, and its name there."""
    kinds = {"application": "applications", "memory": "memory", "disk": "disk"}
    for attribute, kind in kinds.items():
        if name := getattr(budget, attribute):
            return kind, name
    return "results", budget.row


def the_table(lines: Sequence[Line]) -> list[str]:
    """The table: what a row costs, what it is to reach, and whether it does."""
    lines = [line for line in lines if line.kind != "disk" and line.budget.has_target]
    with_poll = any(f"{PREFIX}poll" in line.ours() for line in lines)
    backends = BACKENDS if with_poll else AUTOMATIC
    head = ["row", "calls: ours", "uvloop", "budget"]
    head += [f"x uvloop: {name}" for name in backends]
    head += ["best peer", *[f"x best peer: {name}" for name in backends]]
    head += ["to reach", "reached", "why"]
    return table(head, [_cells(line, backends) for line in lines])


def other_rows(lines: Sequence[Line]) -> list[str]:
    """The rows that were measured and have nothing to reach."""
    lines = [
        line for line in lines if line.kind != "disk" and not line.budget.has_target
    ]
    head = ["row", *[f"x uvloop: {name}" for name in BACKENDS]]
    head += ["best peer", *[f"x best peer: {name}" for name in BACKENDS], "why"]
    found: list[list[str]] = []
    for line in lines:
        peer = line.best_peer()
        cells = [line.budget.path, *[_ratio(line, n, UVLOOP) for n in BACKENDS]]
        cells += [peer or NOTHING, *[_ratio(line, name, peer) for name in BACKENDS]]
        why = line.budget.why
        if line.shortfalls() and not why:
            why = UNKNOWN
        found.append([*cells, why])
    return table(head, found)


def disk_table(lines: Sequence[Line]) -> list[str]:
    """Block requests: by the engine, which is not bound to the loop's backend."""
    engines = ("io_uring", "linux_aio", "threads", "null")
    head = ["row", "calls: io_uring", "budget"]
    head += ["best peer", *[f"x best peer: {name}" for name in engines]]
    head += ["to reach", "reached", "why"]
    found: list[list[str]] = []
    for line in lines:
        if line.kind != "disk":
            continue
        peer, budget = line.best_peer(), line.budget
        calls = line.calls.get(PREFIX + "io_uring", math.nan)
        allowed = NOTHING if budget.calls is None else f"{budget.calls:g}"
        cells = [budget.path, number(calls), allowed, peer or NOTHING]
        cells += [_ratio(line, name, peer, OUR_DISK) for name in engines]
        wanted = ", ".join(f"{value:g} x {to}" for to, value in budget.to.items())
        verdict = line.verdict() if budget.has_target else "no budget"
        found.append([*cells, wanted or NOTHING, verdict, _why(line)])
    return table(head, found)


def _cells(line: Line, backends: Sequence[str]) -> list[str]:
    budget = line.budget
    counts = [line.calls.get(PREFIX + name) for name in AUTOMATIC]
    ours = " / ".join(number(c) for c in counts if c is not None) or NOTHING
    theirs = line.calls.get(UVLOOP, math.nan)
    allowed = NOTHING if budget.calls is None else f"{budget.calls:g}"
    peer = line.best_peer()
    cells = [budget.path, ours, number(theirs), allowed]
    cells += [_ratio(line, name, UVLOOP) for name in backends]
    cells += [peer or NOTHING, *[_ratio(line, name, peer) for name in backends]]
    wanted = [
        f"{value:g}" if to == UVLOOP else f"{value:g} x {to}"
        for to, value in budget.to.items()
    ]
    return [*cells, ", ".join(wanted) or NOTHING, line.verdict(), _why(line)]


def _why(line: Line) -> str:
    why = [text for text in (line.budget.note, line.price()) if text]
    if line.shortfalls():
        why.append(line.budget.why or UNKNOWN)
    return "; ".join(why)


def _ratio(line: Line, name: str, to: str | None, prefix: str = PREFIX) -> str:
    """The ratio of a backend, or of an engine of block devices."""
    if to is None or prefix + name not in line.ours():
        return NOTHING
    value = line.ratio(prefix + name, to)
    text = number(value)
    return f"**{text}**" if value < 1 else text


def the_floor(lines: Sequence[Line]) -> list[str]:
    """What is left to be gained where a server in C without a loop was measured."""
    found: list[list[str]] = []
    for line in lines:
        cells = line.result.cells if line.result is not None else {}
        if BARE not in cells or not cells[BARE].good or not line.ours():
            continue
        floor = line.ratio(BARE, UVLOOP)
        names = [PREFIX + backend for backend in BACKENDS]
        ours = [line.ratio(n, BARE) if n in cells else math.nan for n in names]
        found.append([line.budget.path, number(floor), *[number(r) for r in ours]])
    head = ["row", "C x uvloop", *[f"{name} x C" for name in BACKENDS]]
    return table(head, found) if found else ["Not measured.", ""]


def means(lines: Sequence[Line], results: Results) -> list[str]:
    """Geometric means of the ratios to uvloop, over all rows that have one."""
    rows = [
        line for line in lines if line.result in results.rows and not line.budget.aside
    ]
    cpu = [line for line in rows if line.measure is CPU]
    both = rows + [line for line in lines if line.kind == "applications"]
    found: list[list[str]] = []
    for name in [*results.measured, None]:
        ratios = _ratios_of(rows, name)
        found.append(
            [
                name or "aioqemu, the best backend of each row",
                _mean(ratios),
                str(len(ratios)),
                str(sum(value > 1 for value in ratios)),
                str(sum(value < 1 for value in ratios)),
                _mean(_ratios_of(cpu, name)),
                _mean(_ratios_of(both, name)),
            ]
        )
    head = ["loop", "geometric mean", "rows", "above 1", "below 1"]
    head += ["of CPU time alone", "with applications"]
    return table(head, found)


def _ratios_of(lines: Sequence[Line], name: str | None) -> list[float]:
    """The ratios of a loop to uvloop, or of our best backend, as far as known."""
    found = [
        line.best(UVLOOP) if name is None else line.ratio(name, UVLOOP)
        for line in lines
        if line.result is not None and (name is None or name in line.result.cells)
    ]
    return [value for value in found if value == value and value > 0]


def _mean(ratios: Sequence[float]) -> str:
    return number(statistics.geometric_mean(ratios) if ratios else math.nan)


def losses(lines: Sequence[Line]) -> list[str]:
    """Every figure of ours that is worse than uvloop's, the worst first."""
    found: list[tuple[float, list[str]]] = []
    for line in lines:
        for name in line.ours():
            assert line.result is not None
            ratio = line.result.ratio(name, UVLOOP, line.measure)
            if ratio is None or ratio.median >= 1:
                continue
            extremes = f"{number(ratio.low)} to {number(ratio.high)}"
            sure = "no" if ratio.high >= 1 else "yes"
            cells = [line.budget.path, name, number(ratio.median), extremes, sure]
            found.append((ratio.median, cells))
    head = ["row", "loop", "x uvloop", "lowest and highest round", "beyond the spread"]
    return (
        table(head, [cells for _, cells in sorted(found)]) if found else ["None.", ""]
    )


def figures(results: Results, *, scale: float = 1.0) -> list[str]:
    """Every figure of a file: rows down, loops across; in brackets the ratio."""
    names = [
        name for name in results.loops if any(_good(r, name) for r in results.rows)
    ]
    lines: list[list[str]] = []
    for row in results.rows:
        main = measures_of(row.group)[0]
        cells = [row.title]
        for name in names:
            if not _good(row, name):
                failed = name in row.cells and row.group != "calls"
                cells.append("failed" if failed else NOTHING)
                continue
            text = number(row.cells[name].spread(main.of).median * scale)
            if row.group == "calls":
                cells.append(text)
                continue
            ratio = row.ratio(name, results.reference)
            known = ratio is not None and name != results.reference
            cells.append(
                f"{text} ({number(ratio.median)})" if ratio and known else text
            )
        lines.append(cells)
    return table(["row", *names], lines)


def _good(row: RowResult, name: str) -> bool:
    return name in row.cells and row.cells[name].good


def absences(files: dict[str, Results]) -> list[str]:
    """Who was not measured, or failed a row, with the reason."""
    found: dict[str, list[str]] = {}
    for kind, results in files.items():
        for name, about in results.loops.items():
            if "missing" in about:
                found.setdefault(f"{name}: {about['missing']}", []).append(kind)
        for row in results.rows:
            for name, cell in row.cells.items():
                if cell.failed is not None and kind != "system_calls":
                    found.setdefault(f"{name}: {cell.failed}", []).append(row.title)
    lines = [f"* {why} ({', '.join(where)})" for why, where in sorted(found.items())]
    return [*(lines or ["Nobody."]), ""]
