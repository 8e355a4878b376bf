"""What a run found: rounds, medians, spread, ratios. Data and arithmetic only.

A cell is one loop on one row. Ratios are the reference's figure divided by ours for
CPU time, and ours divided by the reference's for messages a second: above 1 is
faster than the reference, in both. The ratio shown is that of the medians; its spread
comes from the rounds, each of which ran all loops one after the other.
"""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

SCHEMA = 1
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
        rounds: one entry a round; keys `events`, `cpu_ns`, `wall_ns`, and from a
            client `client_cpu_ns`, `p50_us`, `p99_us`, `lost`.
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
        return self._ratio(loop, reference, cpu_us, upside_down=False)

    def rate_ratio(self, loop: str, reference: str) -> Spread | None:
        """Events a second of the loop divided by those of the reference."""
        return self._ratio(loop, reference, rate, upside_down=True)

    def _ratio(
        self,
        loop: str,
        reference: str,
        measure: Callable[[Round], float],
        *,
        upside_down: bool,
    ) -> Spread | None:
        ours, theirs = self.cells.get(loop), self.cells.get(reference)
        if ours is None or theirs is None or not (ours.good and theirs.good):
            return None
        top, bottom = (ours, theirs) if upside_down else (theirs, ours)
        tops, bottoms = top.values(measure), bottom.values(measure)
        if min(bottoms) <= 0:
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
            group: "server", "micro", or None for both.
            rates: of the events a second instead of the CPU time.

        Returns:
            The mean and how many rows are in it, or None if there is none.
        """
        found: list[float] = []
        for row in self.rows:
            if group in (None, row.group):
                ratio = row.rate_ratio if rates else row.cpu_ratio
                spread = ratio(loop, self.reference)
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
                    for group in ("server", "micro", None)
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
        measures: dict[str, Callable[[Round], float]] = {
            "cpu_us_per_event": cpu_us,
            "events_per_second": rate,
        }
        if row.group == "server":
            measures |= {key: latency(key) for key in ("p50_us", "p99_us")}
        for name, measure in measures.items():
            found[name] = vars(cell.spread(measure))
        ratios = {
            "cpu_ratio": row.cpu_ratio(loop, self.reference),
            "rate_ratio": row.rate_ratio(loop, self.reference),
        }
        found |= {key: vars(val) for key, val in ratios.items() if val is not None}
        found |= {"rounds": cell.rounds, "client": cell.client, "process": cell.extra}
        return found

    def save(self, path: Path) -> None:
        """Write the JSON file."""
        path.write_text(json.dumps(self.to_json(), indent=1) + "\n")


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
