#!/usr/bin/env python3
"""Memory of what waits: connections, timers, tasks, callbacks, on every loop.

    python benchmarks/memory.py
    python benchmarks/memory.py --rows 'connection*' --loops uvloop,aioqemu-epoll

A figure is the growth of a process's anonymous memory from a few objects to thousands,
divided by their number: what is taken from the kernel, whoever in the process asked for
it, rounded up by no more than a page in all. Connections are those of a server in a
process of its own; each has echoed one message, and the clients are in this process.
What the kernel keeps for a socket is in no figure, nor is what a client takes. All
loops run one after the other in each round, in new processes.
"""

from __future__ import annotations

import argparse
import ctypes
import fnmatch
import resource
import socket
import ssl
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from children import HERE, Child, ChildFailed, call, python
from loops import LOOPS, spec_of
from machine import describe
from measure import in_turn, probe_loop
from memory_rows import resident
from results import MEMORY, Cell, Results, Round, RowResult

OUTPUT = HERE.parent / "build" / "benchmarks" / "memory.json"
TIMEOUT = 60.0
MESSAGE = b"x" * 1000
PR_SET_THP_DISABLE = 41


@dataclass(frozen=True)
class Row:
    """What there are many of.

    Attributes:
        name: of the row, and of the function in `memory_rows.py`.
        title: what the table calls it.
        unit: one of them.
        counts: how many there are at the first look, and at the second.
        server: for connections, the kind of server in `servers.py`.
    """

    name: str
    title: str
    unit: str = "connection"
    counts: tuple[int, int] = (200, 3200)
    server: str = ""


ROWS = (
    Row("connection", "idle TCP connection, Protocol", server="tcp-lean"),
    Row(
        "connection-streams",
        "idle TCP connection, asyncio's streams, with its task",
        server="tcp-streams",
    ),
    Row(
        "connection-own-streams",
        "idle TCP connection, the loop's own streams, with its task",
        server="tcp-own",
    ),
    Row(
        "connection-tls",
        "idle TLS connection, Protocol",
        counts=(50, 450),
        server="tls-lean",
    ),
    Row(
        "connection-tls-streams",
        "idle TLS connection, asyncio's streams, with its task",
        counts=(50, 450),
        server="tls-streams",
    ),
    Row("timer", "pending timer", "timer", (1000, 101_000)),
    Row("task", "task that sleeps", "task", (1000, 31_000)),
    Row("switch", "task whose next step is queued", "task", (1000, 31_000)),
    Row("handle", "callback that is ready", "callback", (1000, 101_000)),
)


class Clients:
    """Connections to a server, which have all had one answer."""

    def __init__(self, port: int, context: ssl.SSLContext | None) -> None:
        self.address = ("127.0.0.1", port)
        self.context = context
        self.socks: list[socket.socket] = []

    def grow(self, count: int) -> None:
        """Connect until there are so many.

        Raises:
            OSError: the server does not answer as it should.
        """
        while len(self.socks) < count:
            sock = socket.create_connection(self.address, timeout=10)
            if self.context is not None:
                sock = self.context.wrap_socket(sock, server_hostname="localhost")
            self.socks.append(sock)
            sock.sendall(MESSAGE)
            missing = len(MESSAGE)
            while missing:
                data = sock.recv(missing)
                if not data:
                    raise ConnectionError("the server closed the connection")
                missing -= len(data)

    def close(self) -> None:
        """Close all."""
        for sock in self.socks:
            sock.close()


def connections(row: Row, loop: str, folder: Path) -> Round:
    """Measure a server from outside.

    Raises:
        ChildFailed: it cannot be measured; says why.
    """
    words = python("servers.py", "--loop", loop, "--kind", row.server)
    context = None
    if row.server.startswith("tls"):
        words += ["--cert", str(folder / "server.pem")]
        context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    few, many = row.counts
    with Child(words) as server:
        clients = Clients(server.receive(TIMEOUT)["address"]["port"], context)
        try:
            seen: list[int] = []
            for count in (few, many):
                clients.grow(count)
                server.send("collect")
                server.receive(TIMEOUT)
                seen.append(resident(server.pid))
        except OSError as exc:
            raise ChildFailed(f"client: {exc}") from exc
        finally:
            clients.close()
    return {"events": many - few, "bytes": seen[1] - seen[0]}


def objects(row: Row, loop: str) -> Round:
    """Let a process measure itself.

    Raises:
        ChildFailed: it cannot; says why.
    """
    few, many = map(str, row.counts)
    words = [row.name, "--loop", loop, "--few", few, "--many", many]
    return call(python("memory_rows.py", *words), timeout=TIMEOUT)


def measure(row: Row, names: list[str], rounds: int, folder: Path) -> RowResult:
    """All rounds of a row; a loop that fails says why, and is not asked again."""
    group = "server" if row.server else "micro"
    cells = {name: Cell() for name in names if spec_of(name).runs(group)}
    for turn in range(rounds):
        for name in in_turn(cells, turn):
            cell = cells[name]
            if cell.failed is not None:
                continue
            try:
                found = (
                    connections(row, name, folder) if row.server else objects(row, name)
                )
            except (ChildFailed, OSError) as exc:
                cell.failed = str(exc)
            else:
                cell.rounds.append(found)
    return RowResult(row.name, row.title, "memory", row.unit, cells)


def prepare(folder: Path) -> None:
    """Make a certificate, and take care that memory is counted in small pages."""
    import trustme

    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    pem = authority.issue_cert("localhost").private_key_and_cert_chain_pem
    pem.write_to_path(str(folder / "server.pem"))
    # Handed down to children. Where the kernel knows no such thing all are hit alike.
    ctypes.CDLL(None).prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def show(row: RowResult, reference: str) -> None:
    """Print one row, the least first."""
    print(f"\n{row.title}: bytes of each; how many times less than {reference}")
    there = {name: cell for name, cell in row.cells.items() if cell.good}
    for name, cell in sorted(
        there.items(), key=lambda x: x[1].spread(MEMORY.of).median
    ):
        spread = cell.spread(MEMORY.of)
        ratio = row.ratio(name, reference)
        times = f"{ratio.median:6.2f}" if ratio is not None else ""
        extremes = f"[{spread.low:.0f}, {spread.high:.0f}]"
        print(f"  {name:18} {spread.median:9.0f} {extremes:18} {times}", flush=True)
    for name, cell in row.cells.items():
        if cell.failed is not None:
            print(f"  {name:18} no figure: {cell.failed}")


def main() -> int:
    """Run as a script."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--loops", help="comma-separated (default: all that work)")
    parser.add_argument("--rows", default="*", help="comma-separated names or globs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--reference", default="uvloop")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    args = parser.parse_args()
    patterns = args.rows.split(",")
    rows = [row for row in ROWS if any(fnmatch.fnmatch(row.name, p) for p in patterns)]
    if not rows:
        parser.error(f"there are the rows {', '.join(row.name for row in ROWS)}")
    names = args.loops.split(",") if args.loops else list(LOOPS)
    loops = {name: probe_loop(name) for name in names}
    for name, found in loops.items():
        if "missing" in found:
            print(f"loop {name} is not measured: {found['missing']}")
    results = Results(describe(), {"rounds": args.rounds}, loops, args.reference)
    with tempfile.TemporaryDirectory(prefix="aioqemu-memory-") as folder:
        prepare(Path(folder))
        for row in rows:
            result = measure(row, results.measured, args.rounds, Path(folder))
            show(result, args.reference)
            results.rows.append(result)
    results.save(args.output)
    print(f"\n{args.output}")
    ours = [name for name in names if spec_of(name).ours]
    cells = [
        row.cells[name] for row in results.rows for name in ours if name in row.cells
    ]
    return 0 if all(cell.good for cell in cells) else 1


if __name__ == "__main__":
    sys.exit(main())
