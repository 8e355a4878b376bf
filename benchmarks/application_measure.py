"""Measures application rows: `measure.Bench` with other children and other clients.

A measurement is two samples of the measured process while it is driven: events, CPU
time and wall time between them. Starting and ending of the driver lie outside. It
knows nothing of options and tables.
"""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import time
from typing import TYPE_CHECKING

from application_database import Database, find_programs
from application_rows import HELLO, LARGE, Application
from children import Child, ChildFailed, python
from clients import Clients
from measure import ANSWER_TIMEOUT, START_TIMEOUT, Bench, Runner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any

    from measure import Plan
    from results import Cell
    from rows import Row


def missing(row: Application) -> str | None:
    """Say why a row cannot be measured here, or None."""
    absent = [name for name in row.packages if not importlib.util.find_spec(name)]
    if absent:
        return f"{', '.join(absent)} not installed"
    if row.driver == "wrk" and shutil.which("wrk") is None:
        return "there is no wrk"
    if row.driver == "itself" and find_programs() is None:
        return "there is no PostgreSQL"
    return None


class ApplicationBench(Bench):
    """Measures application rows on a set of loops.

    Args:
        loops: names, all of which work.
        plan: how to measure.
        step: called with a text before each measurement.
    """

    def __init__(
        self, loops: Sequence[str], plan: Plan, step: Callable[[str], None]
    ) -> None:
        super().__init__(loops, plan, Clients(None, None), step)
        self._database: Database | None = None

    def close(self) -> None:
        """End the database, if one was needed."""
        database, self._database = self._database, None
        if database is not None:
            database.close()
        super().close()

    def database(self) -> Database:
        """Start the database, once a run.

        Raises:
            ChildFailed: there is none.
        """
        if self._database is None:
            programs = find_programs()
            if programs is None:
                raise ChildFailed("there is no PostgreSQL")
            self._database = Database(programs, self.client_cpu)
        return self._database

    def _runner(self, row: Row, loop: str) -> Runner:
        assert isinstance(row, Application)
        return ApplicationRunner(self, row, loop)


class ApplicationRunner(Runner):
    """The measured process, and who drives it."""

    quit_command = "quit"

    def __init__(self, bench: ApplicationBench, row: Application, loop: str) -> None:
        self.application = row
        self.connections = row.connections or bench.plan.connections
        self.trouble: ChildFailed | None = None
        options = ["--loop", loop, "--row", row.name, "--cpu", str(bench.server_cpu)]
        options += ["--connections", str(self.connections)]
        if row.driver == "itself":
            try:
                database = bench.database()
                options += ["--database", database.directory, "--user", database.user]
            except ChildFailed as exc:
                self.trouble = exc
        super().__init__(bench, row, python("application_servers.py", *options))

    def ready(self) -> None:
        """Wait for the address."""
        if self.trouble is not None:
            raise self.trouble
        self.address = self.child.receive(START_TIMEOUT)["address"]

    def measure(self, cell: Cell) -> None:
        """Drive the process once, and cut a window out of that."""
        plan = self.bench.plan
        with self._driven() as (pid, found):
            time.sleep(plan.warmup)
            before, client_before = self._ask("sample"), cpu_clock(pid)
            time.sleep(plan.duration)
            after, client_after = self._ask("sample"), cpu_clock(pid)
        window = {key: after[key] - before[key] for key in before if key in WINDOW}
        if not window["events"]:
            raise ChildFailed(f"nothing was served in {plan.duration:g} s")
        if pid is not None:
            window["client_cpu_ns"] = client_after - client_before
        for key in ("p50_us", "p99_us"):
            window[key] = found.get(key, after.get(key))
        cell.extra = self._ask("usage")
        cell.client = found["client"]
        cell.rounds.append(window)

    def _ask(self, command: str) -> dict[str, Any]:
        self.child.send(command)
        return self.child.receive(ANSWER_TIMEOUT)

    @contextlib.contextmanager
    def _driven(self) -> Iterator[tuple[int | None, dict[str, Any]]]:
        """Keep the process busy.

        Yields:
            The process id of the driver if it is another process, and what will hold
            the driver's figures afterwards.
        """
        found: dict[str, Any] = {}
        if self.application.driver == "itself":
            self._ask("start")
            yield None, found
            self._ask("stop")
            found["client"] = "asyncpg"
            return
        with Child(self._driver()) as child:
            pid = answer_of(child)["pid"]
            yield pid, found
            child.send("stop")
            found |= answer_of(child)
            child.close()

    def _driver(self) -> list[str]:
        row = self.application
        size = {"/": len(HELLO), "/large": LARGE}[row.path]
        options = {
            **self.address,
            "connections": self.connections,
            "cpu": self.bench.client_cpu,
            "path": row.path,
            "size": self.bench.plan.size if row.driver == "websocket" else size,
        }
        flags = [f"--{key}={value}" for key, value in options.items()]
        return python("application_clients.py", row.driver, *flags)

    def explain(self, exc: ChildFailed) -> str:
        """Prefer what the server said to what the client saw of it."""
        try:
            self._ask("usage")
        except ChildFailed as gone:
            return f"server: {gone}"
        return f"client: {exc}"


WINDOW = ("events", "cpu_ns", "wall_ns")


def answer_of(child: Child) -> dict[str, Any]:
    """Read a line of a driver.

    Raises:
        ChildFailed: it is none, or tells of an error.
    """
    found = child.receive(ANSWER_TIMEOUT)
    if "error" in found:
        raise ChildFailed(str(found["error"]))
    return found


def cpu_clock(pid: int | None) -> int:
    """Read the CPU clock of another process, in ns (as clock_getcpuclockid).

    Raises:
        ChildFailed: it has ended.
    """
    if pid is None:
        return 0
    try:
        return time.clock_gettime_ns((~pid << 3) | 2)
    except OSError as exc:
        raise ChildFailed("the driver has ended") from exc
