"""System calls of one event: what each path may cost, and what it costs today.

The table is `benchmarks/budgets.toml`; `benchmarks/system_calls.py` counts, in
processes of its own, under strace. Where a budget is not met, the table has the count
of today and the reason, and that count is what must not rise.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.procs import strace_refusal

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


def run(code: str, *args: str) -> Any:
    """Run code beside the programs of the benchmarks, which are no package."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, *args],
        env={**os.environ, "PYTHONPATH": str(BENCHMARKS)},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


BUDGETS = """
import dataclasses, json
from budgets import budgets
from system_calls import ROWS
found = [dataclasses.asdict(b) | {"counted": b.counted_row} for b in budgets()]
print(json.dumps({"budgets": found, "rows": [row.name for row in ROWS]}))
"""
COUNT = """
import json, sys
from system_calls import ROWS, count, total
[row] = [row for row in ROWS if row.name == sys.argv[1]]
calls = count(row, sys.argv[2])
print(json.dumps({"calls": calls, "total": total(calls)}))
"""


@functools.cache
def table() -> dict[str, Any]:
    """The budgets, and the names of the rows that can be counted."""
    found: dict[str, Any] = run(BUDGETS)
    return found


def counted() -> list[dict[str, Any]]:
    """The budgets that have a count."""
    return [entry for entry in table()["budgets"] if entry["calls"] is not None]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "budget" in metafunc.fixturenames:
        entries = counted()
        names = [entry["counted"] for entry in entries]
        metafunc.parametrize("budget", entries, ids=names)


def test_the_table_names_rows_that_there_are() -> None:
    known = set(table()["rows"])
    assert [e["counted"] for e in counted() if e["counted"] not in known] == []


def test_what_is_not_met_has_a_reason() -> None:
    for entry in counted():
        for present in entry["present"].values():
            assert present > entry["calls"], entry["path"]
            assert entry["why"], entry["path"]


def test_system_calls(budget: dict[str, Any], fdmon: str) -> None:
    if (reason := strace_refusal()) is not None:
        pytest.skip(reason)
    found = run(COUNT, budget["counted"], f"aioqemu-{fdmon}")
    calls, slack = found["calls"], budget["tolerance"]
    count = found["total"]
    if budget["names"]:
        count = sum(calls.get(name, 0) for name in budget["names"])
    said = f"{budget['path']}: {count:.2f} calls an event: {calls}"
    present = budget["present"].get(fdmon)
    most = (budget["calls"] if present is None else present) + slack
    assert count <= most + budget["looks"], said
    if present is not None:
        assert count > budget["calls"] + slack, f"the budget is met now; {said}"
    elif not budget["at_most"]:
        assert count >= budget["calls"] - slack, f"better than its budget; {said}"
