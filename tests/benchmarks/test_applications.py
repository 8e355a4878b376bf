"""The application benchmarks run, and save what they promise. No figure counts.

Knows them only as a program: options, output files, exit status. A `wrk` of our own
stands in for the real one where only what is made of its words is tested.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
TINY = ("--rounds", "2", "--duration", "0.05", "--connections", "4", "--size", "200")
FAKE_WRK = """#!{python}
import pathlib, signal
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
pathlib.Path({ready!r}).touch()
signal.sigwait([signal.SIGINT])
print('result {{"requests":9,"p50_us":5,"p99_us":6,"errors":{errors}}}')
"""
HELLO = b"Hello, world!"

pytestmark = [pytest.mark.slow, pytest.mark.integration]


def run_row(
    row: str, output: Path, *, path: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run one row on asyncio."""
    for name in ("rich", "matplotlib"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"needs {name}")
    program = str(BENCHMARKS / "applications.py")
    options = ["--rows", row, "--loops", "asyncio", "--output", str(output), *TINY]
    environment = dict(os.environ)
    if path is not None:
        environment["PATH"] = path
    return subprocess.run(
        [sys.executable, program, *options],
        env=environment,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


def cell_of(output: Path) -> dict[str, Any]:
    """The only cell of a run."""
    found = json.loads((output / "applications.json").read_text())
    [row] = found["rows"]
    cell: dict[str, Any] = row["cells"]["asyncio"]
    return cell


class Hello(BaseHTTPRequestHandler):
    """Answers what the rows answer."""

    def do_GET(self) -> None:
        """Answer."""
        self.send_response(200)
        self.send_header("Content-Length", str(len(HELLO)))
        self.end_headers()
        self.wfile.write(HELLO)

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet."""


def drive_with_fake_wrk(where: Path, errors: dict[str, int]) -> dict[str, Any]:
    """Let the driver run a wrk that tells of these errors.

    Returns:
        What the driver says at the end.
    """
    program, ready = where / "wrk", where / "ready"
    text = FAKE_WRK.format(
        python=sys.executable, ready=str(ready), errors=json.dumps(errors)
    )
    program.write_text(text)
    program.chmod(0o700)
    with HTTPServer(("127.0.0.1", 0), Hello) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        options = ["--host=127.0.0.1", f"--port={server.server_port}"]
        options += [f"--size={len(HELLO)}", "--connections=1"]
        with subprocess.Popen(
            [sys.executable, BENCHMARKS / "application_clients.py", "wrk", *options],
            env={**os.environ, "PATH": str(where)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as driver:
            try:
                assert driver.stdout is not None
                assert json.loads(driver.stdout.readline())["pid"] > 0
                end = time.monotonic() + 20
                while not ready.exists() and time.monotonic() < end:
                    time.sleep(0.02)
                printed, _ = driver.communicate("stop\n", timeout=20)
            finally:
                driver.kill()
        thread.join(5)
    found: dict[str, Any] = json.loads(printed)
    return found


def test_a_row_gives_json_and_a_table(tmp_path: Path) -> None:
    pytest.importorskip("websockets")
    done = run_row("websocket-echo", tmp_path)
    assert done.returncode == 0, done.stderr + done.stdout
    cell = cell_of(tmp_path)
    assert cell["failed"] is None
    assert cell["note"] is None
    assert len(cell["rounds"]) == 2
    assert cell["cpu_us_per_event"]["median"] > 0
    assert 0 < cell["p50_us"]["median"] <= cell["p99_us"]["median"]
    assert "Failed rows (0)" in (tmp_path / "applications.txt").read_text()


def test_figures_of_wrk_are_read(tmp_path: Path) -> None:
    found = drive_with_fake_wrk(tmp_path, {"read": 0, "status": 0})
    assert found == {"p50_us": 5, "p99_us": 6, "client": "wrk"}


def test_errors_of_wrk_are_failures(tmp_path: Path) -> None:
    found = drive_with_fake_wrk(tmp_path, {"read": 3, "status": 0, "timeout": 1})
    assert found["error"].endswith("wrk had errors: 3 read, 1 timeout")


def test_a_row_whose_driver_is_missing_says_so(tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    done = run_row("http-aiohttp", tmp_path, path=str(tmp_path))
    assert done.returncode == 2
    assert "there is no wrk" in done.stderr
