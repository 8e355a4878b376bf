"""Measures rows: starts the children of all loops, and lets them run in turn.

A round runs every loop once, in an order that rotates from round to round, so that
what the machine does meanwhile falls on all of them. Servers have one core and the
client another. It knows nothing of tables, and of loops only their names.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from children import Child, ChildFailed, call, python
from loops import POLLING, spec_of
from results import Cell, RowResult

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from clients import Clients
    from rows import Row

START_TIMEOUT = 30.0
ANSWER_TIMEOUT = 15.0
BARE = "C"
"""What stands in the place of a loop where there is none (`client/bare_server.c`)."""
MICRO_TIMEOUT = 60.0


@dataclass(frozen=True)
class Plan:
    """How to measure.

    Attributes:
        rounds: how often each loop runs each row.
        duration: seconds of one measurement.
        warmup: seconds before it that do not count.
        connections: of server rows that do not say.
        size: bytes of a message of server rows that do not say.
        fresh: whether each round starts new processes (memory layout and hash
            seeds differ from process to process, and with them the speed).
        scale: micro rows run this share of their count.
        bare: whether the server without a loop is measured, where there is one.
    """

    rounds: int
    duration: float
    warmup: float
    connections: int
    size: int
    fresh: bool
    scale: float = 1.0
    bare: bool = True


def pick_cores() -> tuple[int, int]:
    """Choose the cores of server and client; the same one if there is only one."""
    allowed = sorted(os.sched_getaffinity(0))
    return allowed[-1], allowed[0]


def probe_loop(name: str) -> dict[str, str]:
    """Ask a child process whether a loop works here; see `loops.probe`."""
    try:
        return call(python("loops.py", name), timeout=START_TIMEOUT)
    except ChildFailed as exc:
        return {"missing": str(exc)}


def in_turn(names: Iterable[str], number: int) -> list[str]:
    """The order of a round: each one begins once in so many rounds."""
    found = list(names)
    shift = number % len(found) if found else 0
    return found[shift:] + found[:shift]


class Bench:
    """Measures rows on a set of loops.

    Args:
        loops: names, all of which work.
        plan: how to measure.
        clients: the load generators.
        step: called with a text before each measurement.
    """

    def __init__(
        self,
        loops: Sequence[str],
        plan: Plan,
        clients: Clients,
        step: Callable[[str], None],
    ) -> None:
        self.loops = list(loops)
        self.plan = plan
        self.clients = clients
        self.step = step
        self.server_cpu, self.client_cpu = pick_cores()
        self._dir = tempfile.TemporaryDirectory(prefix="aioqemu-bench-")
        self._cert: Path | None = None

    def close(self) -> None:
        """Remove sockets and certificates."""
        self._dir.cleanup()

    def measure(self, row: Row) -> RowResult:
        """Measure one row on all loops. A loop that fails does not stop the others."""
        cells = {name: Cell() for name in self.loops if spec_of(name).runs(row.group)}
        if row.bare and self.plan.bare and self.clients.bare is not None:
            cells[BARE] = Cell()
        result = RowResult(row.name, row.title, row.group, row.unit, cells)
        rounds = min(self.plan.rounds, row.rounds or self.plan.rounds)
        if row.alone:
            for number in range(rounds):
                for loop in in_turn(cells, number):
                    cell = {loop: cells[loop]}
                    with self._children(row, cell) as children:
                        self._round(row, cell, children, number)
        elif self.plan.fresh:
            for number in range(rounds):
                with self._children(row, cells) as children:
                    self._round(row, cells, children, number)
        else:
            with self._children(row, cells) as children:
                for number in range(rounds):
                    self._round(row, cells, children, number)
        return result

    def _round(
        self, row: Row, cells: dict[str, Cell], children: dict[str, Runner], number: int
    ) -> None:
        for loop in in_turn(cells, number):
            self.step(f"{row.title}: {loop}")
            cell = cells[loop]
            if cell.failed is not None:
                continue
            try:
                children[loop].measure(cell)
            except ChildFailed as exc:
                cell.failed = children[loop].explain(exc)

    @contextlib.contextmanager
    def _children(
        self, row: Row, cells: dict[str, Cell]
    ) -> Iterator[dict[str, Runner]]:
        """Start a child for each loop, all at once; end them whatever happens."""
        runners: dict[str, Runner] = {}
        try:
            for loop in cells:
                if cells[loop].failed is None:
                    runners[loop] = self._runner(row, loop)
            for loop, runner in runners.items():
                try:
                    runner.ready()
                except ChildFailed as exc:
                    cells[loop].failed = str(exc)
            yield runners
            for loop, runner in runners.items():
                runner.finish(cells[loop])
        finally:
            for runner in runners.values():
                runner.child.kill()

    def _runner(self, row: Row, loop: str) -> Runner:
        if row.group == "micro":
            return MicroRunner(self, row, loop)
        return ServerRunner(self, row, loop)

    def socket_path(self, loop: str) -> str:
        """Give a path for a Unix socket that nobody uses."""
        path = Path(self._dir.name) / f"{loop.replace(':', '-')}.sock"
        path.unlink(missing_ok=True)
        return str(path)

    def certificate(self) -> str:
        """Make the certificate of the TLS rows, once a run.

        Raises:
            ChildFailed: the package that makes it is not installed.
        """
        if self._cert is None:
            try:
                import trustme
            except ImportError as exc:
                raise ChildFailed("TLS rows need the package trustme") from exc
            made = trustme.CA().issue_cert("localhost")
            path = Path(self._dir.name) / "server.pem"
            made.private_key_and_cert_chain_pem.write_to_path(str(path))
            self._cert = path
        return str(self._cert)


class Runner:
    """A child process that measures one loop on one row."""

    quit_command: str | None = None

    def __init__(self, bench: Bench, row: Row, command: Sequence[str]) -> None:
        self.bench = bench
        self.row = row
        self.child = Child(command)

    def ready(self) -> None:
        """Wait until the child can be measured."""
        self.child.receive(START_TIMEOUT)

    def measure(self, cell: Cell) -> None:
        """Add one round to the cell."""
        raise NotImplementedError

    def explain(self, exc: ChildFailed) -> str:
        """Say why a measurement failed."""
        return str(exc)

    def finish(self, cell: Cell) -> None:
        """End the child in order, and note it if it does not end well."""
        trouble = self.child.close(quit_command=self.quit_command)
        if trouble and cell.failed is None:
            cell.note = f"at its end: {trouble}"


class ServerRunner(Runner):
    """A server and the client that drives it."""

    quit_command = "quit"

    def __init__(self, bench: Bench, row: Row, loop: str) -> None:
        self.trouble: ChildFailed | None = None
        if loop == BARE:
            super().__init__(bench, row, self._bare(bench, row))
            return
        name = loop + POLLING if row.polling else loop
        options = ["--loop", name, "--kind", row.server_kind]
        options += ["--cpu", str(bench.server_cpu)]
        if row.transport == "unix":
            options += ["--path", bench.socket_path(loop)]
        elif row.transport == "tls":
            try:
                options += ["--cert", bench.certificate()]
            except ChildFailed as exc:
                self.trouble = exc
        super().__init__(bench, row, python("servers.py", *options))

    @staticmethod
    def _bare(bench: Bench, row: Row) -> list[str]:
        command = [str(bench.clients.bare), row.server_kind, str(bench.server_cpu)]
        return [
            *command,
            *([bench.socket_path(BARE)] if row.transport == "unix" else []),
        ]

    def ready(self) -> None:
        """Wait for the address."""
        if self.trouble is not None:
            raise self.trouble
        self.address = self.child.receive(START_TIMEOUT)["address"]

    def measure(self, cell: Cell) -> None:
        """Let the client drive the server once."""
        plan = self.bench.plan
        found = self.bench.clients.drive(
            self.row,
            self.address,
            pid=self.child.pid,
            cpu=self.bench.client_cpu,
            connections=plan.connections,
            size=plan.size,
            warmup=plan.warmup,
            duration=plan.duration,
        )
        self.child.send("usage")
        cell.extra = self.child.receive(ANSWER_TIMEOUT)
        cell.client = found.pop("client")
        cell.rounds.append(
            {
                "events": found.pop("messages"),
                "cpu_ns": found.pop("server_cpu_ns"),
                **found,
            }
        )

    def explain(self, exc: ChildFailed) -> str:
        """Prefer what the server said to what the client saw of it."""
        try:
            self.child.send("usage")
            self.child.receive(ANSWER_TIMEOUT)
        except ChildFailed as gone:
            return f"server: {gone}"
        return f"client: {exc}"


class MicroRunner(Runner):
    """A child that runs a micro row when it is told to."""

    def __init__(self, bench: Bench, row: Row, loop: str) -> None:
        options = [row.name, "--loop", loop, "--serve"]
        if row.pinned:
            options += ["--cpu", str(bench.server_cpu)]
        super().__init__(bench, row, python("micro.py", *options))
        scale = bench.plan.scale if row.scalable else 1.0
        self.count = max(1, int(row.count * scale))
        self.warm = False

    def measure(self, cell: Cell) -> None:
        """Run the row for the planned time; the first run warms up."""
        if not self.warm:
            self.warm = True
            if self.count == 1:  # it takes long, and warms up on the way
                cell.rounds.append(self._run(1, 0))
                return
            self._run(max(1, self.count // 10), 0)
        cell.rounds.append(self._run(self.count, self.bench.plan.duration))

    def _run(self, count: int, seconds: float) -> dict[str, float]:
        self.child.send(f"{count} {seconds}")
        return self.child.receive(MICRO_TIMEOUT + seconds)
