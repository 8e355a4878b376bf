"""The page of benchmarks is what the committed results give, and says what it has to.

Knows the program by its options and the page by its text. Figures are made up here.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
LOOPS = ("asyncio", "uvloop", "zuvloop", "aioqemu-epoll", "aioqemu-io_uring")


def page(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the program."""
    return subprocess.run(
        [sys.executable, str(BENCHMARKS / "page.py"), *map(str, words)],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


def results(rows: dict[str, dict[str, float]], key: str, group: str) -> dict[str, Any]:
    """A file of results with one round, of so many units for each loop."""
    return {
        "schema": 1,
        "environment": {
            "date": "2026-01-02T03:04:05+00:00",
            "cpu": "A processor",
            "cores": 2,
            "cores_allowed": [0, 1],
            "kernel": "6.18",
            "libc": "glibc 2.36",
            "load_at_start": [0.0, 0.0, 0.0],
            "python": {
                "version": "3.14.0",
                "implementation": "CPython",
                "compiler": "GCC",
                "optimised": True,
                "debug": False,
            },
        },
        "options": {"rounds": 1},
        "loops": {
            **{name: {"version": "1"} for name in LOOPS},
            "rloop": {"missing": "not installed (No module named 'rloop')"},
        },
        "reference": "uvloop",
        "rows": [
            {
                "name": name,
                "title": name,
                "group": group,
                "unit": "event",
                "cells": {
                    loop: {
                        "failed": None,
                        "rounds": [{"events": 1, "wall_ns": 1, key: value}],
                    }
                    for loop, value in cells.items()
                },
            }
            for name, cells in rows.items()
        ],
    }


def loops(*values: float) -> dict[str, float]:
    """A value for each loop."""
    return dict(zip(LOOPS, values, strict=True))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Results of three rows, of which one is lost, and of what they call."""
    files = {
        "results": results(
            {
                "call_soon_chain": loops(9000, 8000, 4000, 2000, 1000),
                "sleep_0": loops(9000, 8000, 4000, 4000, 4000),
                "create_task": loops(9000, 1000, 4000, 4000, 500),
            },
            "cpu_ns",
            "micro",
        ),
        "system_calls": results({"sleep_0": loops(1, 1, 1, 0, 0)}, "calls", "calls"),
        "memory": results({"connection": loops(9, 4, 3, 2, 2)}, "bytes", "memory"),
    }
    found = tmp_path / "results"
    found.mkdir()
    for name, data in files.items():
        (found / f"{name}.json").write_text(json.dumps(data))
    return found


def the_table(text: str) -> dict[str, list[str]]:
    """The cells of the first table, by its first column."""
    _, _, rest = text.partition("\n| row | calls")
    lines = rest.partition("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    return {row[0]: row[1:] for row in cells}


def test_the_committed_page_is_what_the_results_give() -> None:
    done = page("--check")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_page_tells_ratios_budgets_and_what_is_missing(
    folder: Path, tmp_path: Path
) -> None:
    if importlib.util.find_spec("matplotlib") is None:
        pytest.skip("needs matplotlib")
    docs = tmp_path / "docs"
    done = page("--results", folder, "--docs", docs)
    assert done.returncode == 0, done.stderr
    assert page("--results", folder, "--docs", docs, "--check").returncode == 0
    text = (docs / "benchmarks.md").read_text()
    found = the_table(text)
    assert list(found)[:2] == ["await sleep(0)", "create_task + await"]
    chain = found["call_soon chain, one callback a pass"]
    assert chain[3:8] == ["4.00", "8.00", "zuvloop", "2.00", "4.00"]
    assert chain[8] == "4, 1 x rloop, 1 x zuvloop"
    assert chain[9] == "yes, but rloop not measured"
    sleep = found["await sleep(0)"]
    assert sleep[:3] == ["0.00 / 0.00", "1.00", "0"]
    assert sleep[9] == "**no**: 2.00 of 2.5"
    assert found["create_task + await"][9] == "**no**: epoll below 1"
    assert found["memory: idle connection"][9] == "yes"
    assert found["TCP echo, Protocol"][9] == "not measured"
    assert "| create_task + await | aioqemu-epoll | 0.25 |" in text
    assert "| aioqemu-epoll | 1.26 | 3 | 2 | 1 |" in text
    assert "block requests (`python3 dev.py disk`)" in text
    assert "rloop: not installed" in text
    drawn = sorted(path.name for path in (docs / "benchmarks").iterdir())
    assert drawn == ["memory.svg", "micro.svg"]
    assert all(f"benchmarks/{name}" in text for name in drawn)

    memory = folder / "memory.json"
    memory.write_text(memory.read_text() + "\n")
    old = page("--results", folder, "--docs", docs, "--check")
    assert old.returncode == 1
    assert "memory.svg" in old.stdout
    memory.unlink()
    gone = page("--results", folder, "--docs", docs, "--check")
    assert gone.returncode == 1
    assert "benchmarks.md, benchmarks/memory.svg" in gone.stdout


def test_a_page_without_results_says_so(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    assert page("--results", tmp_path, "--docs", docs).returncode == 0
    text = (docs / "benchmarks.md").read_text()
    assert "Not measured yet" in text
    assert not (docs / "benchmarks").exists()
    assert page("--results", tmp_path, "--docs", docs, "--check").returncode == 0
