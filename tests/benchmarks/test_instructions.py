"""The gate of instructions: a rise fails, and what has no baseline passes.

Knows the program's functions, in a process of its own, and its recorded baseline; it
counts nothing itself, since that takes a minute.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
BASELINE = BENCHMARKS / "baseline" / "instructions.json"

MAIN = """
import json, sys
from pathlib import Path
import instructions
found, before, under, arguments = json.loads(sys.argv[1])
instructions.refusal = lambda: None
instructions.key = lambda: under
instructions.count_all = lambda rows, loop: (found, {})
instructions.RECORD = Path(arguments[1]).with_name("record.json")
if before:
    instructions.save(Path(arguments[1]), "this one", before)
sys.argv[1:] = arguments
sys.exit(instructions.main())
"""


def gate(
    path: Path,
    found: dict[str, float],
    before: dict[str, float],
    *,
    under: str = "this one",
    words: tuple[str, ...] = (),
) -> tuple[int, str]:
    """Run the program with counts that are made up.

    Returns:
        Its exit status, and what it printed.
    """
    given = json.dumps([found, before, under, ["--baseline", str(path), *words]])
    done = subprocess.run(
        [sys.executable, "-P", "-c", MAIN, given],
        env={**os.environ, "PYTHONPATH": str(BENCHMARKS)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert not done.stderr, done.stderr
    return done.returncode, done.stdout


def test_a_rise_of_more_than_three_per_cent_fails(tmp_path: Path) -> None:
    before = {"sleep_0": 1000.0, "create_task": 1000.0}
    found = {"sleep_0": 1031.0, "create_task": 1029.0}
    status, printed = gate(tmp_path / "baseline.json", found, before)
    assert status == 1
    assert "more than 3% above the baseline: sleep_0\n" in printed


def test_a_rise_within_the_allowance_and_a_fall_pass(tmp_path: Path) -> None:
    before = {"sleep_0": 1000.0, "create_task": 1000.0}
    found = {"sleep_0": 1029.0, "create_task": 500.0}
    status, printed = gate(tmp_path / "baseline.json", found, before)
    assert status == 0
    assert "+2.9%" in printed
    assert "-50.0%" in printed


def test_a_fall_that_leaves_room_for_a_rise_is_told(tmp_path: Path) -> None:
    before = {"sleep_0": 1000.0, "create_task": 2000.0}
    found = {"sleep_0": 960.0, "create_task": 1950.0}
    status, text = gate(tmp_path / "baseline.json", found, before)
    assert status == 0
    [line] = [line for line in text.splitlines() if "to be recorded" in line]
    assert line.startswith("sleep_0")


def test_one_row_that_rises_fails_however_much_others_fall(tmp_path: Path) -> None:
    before = {"sleep_0": 1000.0, "create_task": 1000.0}
    found = {"sleep_0": 100.0, "create_task": 1100.0}
    assert gate(tmp_path / "baseline.json", found, before)[0] == 1


def test_without_a_baseline_it_says_so_and_passes(tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    status, printed = gate(path, {"sleep_0": 9e9}, {"sleep_0": 1.0}, under="another")
    assert status == 0
    assert "NO BASELINE for another" in printed
    assert json.loads((tmp_path / "record.json").read_text()) == {
        "another": {"sleep_0": 9e9}
    }


def test_a_new_row_has_nothing_to_be_held_against(tmp_path: Path) -> None:
    found = {"sleep_0": 1000.0, "create_task": 1e6}
    assert gate(tmp_path / "baseline.json", found, {"sleep_0": 1000.0})[0] == 0


def test_record_makes_it_the_baseline_beside_those_of_others(tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    found = {"sleep_0": 2000.04}
    status, _ = gate(
        path, found, {"sleep_0": 1000.0}, under="another", words=("--record",)
    )
    assert status == 0
    assert json.loads(path.read_text()) == {
        "another": {"sleep_0": 2000.0},
        "this one": {"sleep_0": 1000.0},
    }


def test_the_recorded_baseline_has_every_row() -> None:
    recorded: dict[str, dict[str, Any]] = json.loads(BASELINE.read_text())
    code = "import json, instructions; print(json.dumps(list(instructions.ROWS)))"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env={**os.environ, "PYTHONPATH": str(BENCHMARKS)},
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert recorded
    for rows in recorded.values():
        assert sorted(rows) == sorted(json.loads(done.stdout))
