"""What a run found: rounds, medians, spread, ratios. Data and arithmetic only.

A cell is one loop on one row. Ratios are the reference's figure divided by ours where
less is better (CPU time, memory, system calls), and ours divided by the reference's
where more is (messages a second): above 1 is better than the reference, in both. The
ratio shown is that of the medians; its spread comes from the rounds, each of which ran
all loops one after the other. All programs that measure save in this one form.
"""

from __future__ import annotations

import json
import math
import re
import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

SCHEMA = 1
INNERMOST = re.compile(r"\{[^{}\[\]]*\}")
Round = dict[str, float]


@dataclass(frozen=True)
class Spread:
    """A median with the extremes around it."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Sum up at least one value."""
        return cls(statistics.median(values), min(values), max(values))


@dataclass
class Cell:
    """One loop on one row.

    Attributes:
        rounds: one entry a round; keys `events`, and what was seen of them: `cpu_ns`
            and `wall_ns`, `bytes`, or `calls`; from a client `client_cpu_ns`,
            `p50_us`, `p99_us`, `lost`.
        failed: why there is no figure, or None.
        note: something odd that did not spoil the figure.
        extra: CPU times and memory of the server over its life.
        client: which client drove it.
    """

    rounds: list[Round] = field(default_factory=list)
    failed: str | None = None
    note: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    client: str | None = None

    @property
    def good(self) -> bool:
        """Whether there is a figure."""
        return self.failed is None and bool(self.rounds)

    def values(self, measure: Callable[[Round], float]) -> list[float]:
        """One value a round."""
        return [measure(entry) for entry in self.rounds]

    def spread(self, measure: Callable[[Round], float]) -> Spread:
        """Median and extremes of a measure."""
        return Spread.of(self.values(measure))


def cpu_us(entry: Round) -> float:
    """CPU time of the measured process per event, in microseconds."""
    return entry["cpu_ns"] / entry["events"] / 1000


def rate(entry: Round) -> float:
    """Events a second."""
    return entry["events"] / entry["wall_ns"] * 1e9


def server_busy(entry: Round) -> float:
    """Share of one core that the measured process took."""
    return entry["cpu_ns"] / entry["wall_ns"]


def client_busy(entry: Round) -> float:
    """Share of one core that the client took."""
    return entry.get("client_cpu_ns", math.nan) / entry["wall_ns"]


def latency(key: str) -> Callable[[Round], float]:
    """The measure that reads a latency of the client, in microseconds."""
    return lambda entry: entry.get(key, math.nan)


def _each(key: str) -> Callable[[Round], float]:
    return lambda entry: entry[key] / entry["events"]


@dataclass(frozen=True)
class Measure:
    """What is read from a round.

    Attributes:
        name: of its ratio in the JSON, with `_ratio` behind it.
        key: its name in the JSON.
        title: what tables call it.
        of: reads it.
        more: whether more of it is better.
    """

    name: str
    key: str
    title: str
    of: Callable[[Round], float]
    more: bool = False


CPU = Measure("cpu", "cpu_us_per_event", "CPU us", cpu_us)
RATE = Measure("rate", "events_per_second", "events/s", rate, more=True)
P50 = Measure("p50", "p50_us", "p50 us", latency("p50_us"))
P99 = Measure("p99", "p99_us", "p99 us", latency("p99_us"))
MEMORY = Measure("memory", "bytes_per_event", "bytes", _each("bytes"))
CALLS = Measure("calls", "calls_per_event", "system calls", _each("calls"))
MEASURES: dict[str, tuple[Measure, ...]] = {
    "server": (CPU, RATE, P50, P99),
    "micro": (CPU, RATE),
    "disk": (RATE, CPU),
    "memory": (MEMORY,),
    "calls": (CALLS,),
}
"""What there is in a group of rows, the main one first."""


def measures_of(group: str) -> tuple[Measure, ...]:
    """What there is in a group; one that is not known here is like the micro rows."""
    return MEASURES.get(group, (CPU, RATE))


@dataclass
class RowResult:
    """One row, all loops."""

    name: str
    title: str
    group: str
    unit: str
    cells: dict[str, Cell] = field(default_factory=dict)

    def cpu_ratio(self, loop: str, reference: str) -> Spread | None:
        """CPU time of the reference divided by that of the loop."""
        return self.ratio(loop, reference, CPU)

    def rate_ratio(self, loop: str, reference: str) -> Spread | None:
        """Events a second of the loop divided by those of the reference."""
        return self.ratio(loop, reference, RATE)

    def ratio(
        self, loop: str, reference: str, measure: Measure | None = None
    ) -> Spread | None:
        """How much better than the reference a loop is.

        Args:
            loop: name of the loop.
            reference: of the one it is compared with.
            measure: by what; None is the main one of the row's group.

        Returns:
            Above 1 where the loop is better; None where a figure is missing.
        """
        measure = measure or measures_of(self.group)[0]
        ours, theirs = self.cells.get(loop), self.cells.get(reference)
        if ours is None or theirs is None or not (ours.good and theirs.good):
            return None
        top, bottom = (ours, theirs) if measure.more else (theirs, ours)
        tops, bottoms = top.values(measure.of), bottom.values(measure.of)
        if any(math.isnan(value) for value in (*tops, *bottoms)) or min(bottoms) <= 0:
            return None
        each = [a / b for a, b in zip(tops, bottoms, strict=False)]
        middle = statistics.median(tops) / statistics.median(bottoms)
        # with an even number of rounds the ratio of medians may lie outside
        return Spread(middle, min(*each, middle), max(*each, middle))


@dataclass
class Results:
    """Everything about one run; what the JSON holds."""

    environment: dict[str, Any]
    options: dict[str, Any]
    loops: dict[str, dict[str, str]]
    reference: str
    rows: list[RowResult] = field(default_factory=list)

    @property
    def measured(self) -> list[str]:
        """Names of the loops that could be made."""
        return [name for name, found in self.loops.items() if "missing" not in found]

    def geometric_mean(
        self, loop: str, group: str | None = None, *, rates: bool = False
    ) -> tuple[float, int] | None:
        """Geometric mean of the ratios to the reference.

        Args:
            loop: name of the loop.
            group: "server", "micro", ..., or None for all.
            rates: of the events a second instead of the main figure.

        Returns:
            The mean and how many rows are in it, or None if there is none.
        """
        found: list[float] = []
        for row in self.rows:
            if group in (None, row.group):
                spread = row.ratio(loop, self.reference, RATE if rates else None)
                if spread is not None and spread.median > 0:
                    found.append(spread.median)
        if not found:
            return None
        return statistics.geometric_mean(found), len(found)

    def to_json(self) -> dict[str, Any]:
        """Give plain data, with the figures that people look for spelled out."""
        return {
            "schema": SCHEMA,
            "environment": self.environment,
            "options": self.options,
            "loops": self.loops,
            "reference": self.reference,
            "rows": [self._row_json(row) for row in self.rows],
            "geometric_mean": {
                loop: {
                    group or "all": found[0]
                    for group in (*dict.fromkeys(row.group for row in self.rows), None)
                    if (found := self.geometric_mean(loop, group)) is not None
                }
                for loop in self.measured
            },
        }

    def _row_json(self, row: RowResult) -> dict[str, Any]:
        return {
            "name": row.name,
            "title": row.title,
            "group": row.group,
            "unit": row.unit,
            "cells": {
                loop: self._cell_json(row, loop, cell)
                for loop, cell in row.cells.items()
            },
        }

    def _cell_json(self, row: RowResult, loop: str, cell: Cell) -> dict[str, Any]:
        found: dict[str, Any] = {"failed": cell.failed, "note": cell.note}
        if not cell.good:
            return found
        for measure in measures_of(row.group):
            found[measure.key] = vars(cell.spread(measure.of))
            ratio = row.ratio(loop, self.reference, measure)
            if ratio is not None:
                found[f"{measure.name}_ratio"] = vars(ratio)
        found |= {"rounds": cell.rounds, "client": cell.client, "process": cell.extra}
        return found

    def save(self, path: Path) -> None:
        """Write the JSON file, what is innermost on one line."""
        text = json.dumps(self.to_json(), indent=1)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(INNERMOST.sub(lambda m: " ".join(m[0].split()), text) + "\n")


def load(path: Path) -> Results:
    """Read a JSON file that `Results.save` wrote.

    Raises:
        ValueError: it is something else, or of another schema.
    """
    data = json.loads(path.read_text())
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise ValueError(f"{path}: not a result of this version of the benchmarks")
    rows = [
        RowResult(
            row["name"],
            row["title"],
            row["group"],
            row["unit"],
            {
                loop: Cell(
                    rounds=cell.get("rounds", []),
                    failed=cell["failed"],
                    note=cell.get("note"),
                    extra=cell.get("process", {}),
                    client=cell.get("client"),
                )
                for loop, cell in row["cells"].items()
            },
        )
        for row in data["rows"]
    ]
    return Results(
        data["environment"], data["options"], data["loops"], data["reference"], rows
    )
