"""The benchmarks run, and save what they promise. Tiny durations: no figure counts.

Knows the benchmarks only as programs: their options, output files and exit status.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Sequence

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
PNG = b"\x89PNG\r\n\x1a\n"
TINY = ("--rounds", "2", "--duration", "0.05", "--connections", "4", "--size", "100")

pytestmark = pytest.mark.slow


def bench(script: str, *args: str | Path) -> subprocess.CompletedProcess[str]:
    """Run one of the programs to its end."""
    return subprocess.run(
        [sys.executable, str(BENCHMARKS / script), *map(str, args)],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


def run_rows(
    rows: str, output: Path, *, loops: str = "asyncio", status: int = 0
) -> tuple[dict[str, Any], str]:
    """Run rows with tiny durations.

    Returns:
        What the JSON holds, and what was printed.
    """
    need_packages()
    options: Sequence[str | Path] = ("--loops", loops, "--rows", rows, *TINY)
    done = bench("run.py", *options, "--scale", "0.01", "--output", output)
    assert done.returncode == status, done.stderr + done.stdout
    found: dict[str, Any] = json.loads((output / "results.json").read_text())
    return found, done.stdout


@dataclass(frozen=True)
class Run:
    """One run that several tests look at."""

    directory: Path
    found: dict[str, Any]
    printed: str


@pytest.fixture(scope="module")
def two_rows(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A server row and a micro row on asyncio, and a loop that is not installed."""
    output = tmp_path_factory.mktemp("bench")
    loops = "asyncio,no_such_package:make"
    return Run(output, *run_rows("tcp-protocol,sleep_0", output, loops=loops))


def test_two_rows_give_json_table_and_picture(two_rows: Run) -> None:
    found = two_rows.found
    assert [row["name"] for row in found["rows"]] == ["tcp-protocol", "sleep_0"]
    for row in found["rows"]:
        cell = row["cells"]["asyncio"]
        assert cell["failed"] is None
        assert len(cell["rounds"]) == 2
        assert cell["cpu_us_per_event"]["median"] > 0
        assert cell["events_per_second"]["median"] > 0
    server = found["rows"][0]["cells"]["asyncio"]
    assert 0 < server["p50_us"]["median"] <= server["p99_us"]["median"]
    assert (two_rows.directory / "results.png").read_bytes().startswith(PNG)
    assert "Geometric mean" in two_rows.printed
    assert "Failed rows (0)" in two_rows.printed


def test_the_json_says_on_what_it_was_measured(two_rows: Run) -> None:
    environment = two_rows.found["environment"]
    assert environment["python"]["optimised"] in (True, False)
    assert environment["cpu"]
    assert environment["kernel"]
    assert environment["command"][0] == "run.py"
    assert two_rows.found["loops"]["asyncio"]["version"]


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_a_server_without_a_loop_is_measured_too(tmp_path: Path) -> None:
    found, _ = run_rows("tcp-protocol,unix-protocol,tcp-accept", tmp_path)
    assert len(found["rows"]) == 3
    for row in found["rows"]:
        cell = row["cells"]["C"]
        assert cell["failed"] is None
        assert cell["note"] is None
        assert all(one["events"] > 0 for one in cell["rounds"])


def test_a_missing_loop_is_reported(two_rows: Run) -> None:
    missing = two_rows.found["loops"]["no_such_package:make"]["missing"]
    assert "not installed" in missing
    assert "NOT MEASURED" in two_rows.printed


def test_compare_pairs_up_two_files(two_rows: Run) -> None:
    path = two_rows.directory / "results.json"
    done = bench("compare.py", path, path)
    assert done.returncode == 0, done.stderr
    assert "geometric mean, asyncio: 1.000" in done.stdout


def test_a_loop_that_fails_a_row_is_reported_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = (
        "import asyncio\n"
        "class Loop(asyncio.SelectorEventLoop):\n"
        "    async def create_server(self, *args, **kwargs):\n"
        "        raise NotImplementedError('no servers here')\n"
    )
    (tmp_path / "half_a_loop.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    loops = "asyncio,half_a_loop:Loop"
    found, printed = run_rows("tcp-protocol", tmp_path, loops=loops, status=1)
    cells = found["rows"][0]["cells"]
    assert cells["asyncio"]["failed"] is None
    assert cells["half_a_loop:Loop"]["failed"].endswith("no servers here")
    assert "Failed rows (1)" in printed


def test_a_micro_row_runs_by_itself_with_a_fixed_count() -> None:
    done = bench("micro.py", "sleep_0", "--loop", "asyncio", "--count", "10")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["events"] == 10
    assert found["cpu_ns"] > 0


@pytest.fixture(scope="module")
def some_memory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A connection and a timer on asyncio, and a loop that cannot serve."""
    need_packages("rich", "trustme")
    output = tmp_path_factory.mktemp("memory") / "memory.json"
    words = ["--loops", "asyncio,nowhere:make", "--rows", "connection,timer"]
    done = bench("memory.py", *words, "--rounds", "1", "--output", output)
    assert done.returncode == 0, done.stderr + done.stdout
    assert "loop nowhere:make is not measured" in done.stdout
    return output


def test_memory_of_a_connection_and_of_a_timer(some_memory: Path) -> None:
    found = json.loads(some_memory.read_text())
    each = {
        row["name"]: row["cells"]["asyncio"]["bytes_per_event"]["median"]
        for row in found["rows"]
    }
    assert 500 < each["connection"] < 20_000
    assert 100 < each["timer"] < 2_000


def test_compare_knows_files_in_which_nothing_was_timed(some_memory: Path) -> None:
    done = bench("compare.py", some_memory, some_memory)
    assert done.returncode == 0, done.stderr
    assert "geometric mean, asyncio: 1.000" in done.stdout


def test_compare_sees_what_became_more(some_memory: Path, tmp_path: Path) -> None:
    found = json.loads(some_memory.read_text())
    for row in found["rows"]:
        for entry in row["cells"]["asyncio"]["rounds"]:
            entry["bytes"] *= 2
    more = tmp_path / "more.json"
    more.write_text(json.dumps(found))
    done = bench("compare.py", some_memory, more, "--fail-over", "5")
    assert done.returncode == 1, done.stderr
    assert "geometric mean, asyncio: 0.500" in done.stdout


def test_interrupt_leaves_no_process(tmp_path: Path) -> None:
    need_packages()
    marker = f"AIOQEMU_BENCH_TEST={tmp_path}"
    key, value = marker.split("=", 1)
    command = [sys.executable, str(BENCHMARKS / "run.py"), "--loops", "asyncio"]
    command += ["--rows", "tcp-protocol", "--duration", "30", "--output", str(tmp_path)]
    with subprocess.Popen(
        command,
        env={**os.environ, key: value},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            wait_until(lambda: len(with_environment(marker)) >= 3)  # server, client
            process.send_signal(signal.SIGINT)
            assert process.wait(15) == 130
        finally:
            process.kill()
    wait_until(lambda: not with_environment(marker))


def need_packages(*names: str) -> None:
    """Skip without the packages, found and not imported: numpy starts threads."""
    for name in names or ("rich", "matplotlib"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"needs {name}")


def with_environment(marker: str) -> list[int]:
    """Processes that have this variable in their environment."""
    found: list[int] = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if marker.encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except OSError:
            continue  # it ended meanwhile, or belongs to somebody else
    return found


def wait_until(condition: Any) -> None:
    """Wait at most 15 s."""
    end = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
