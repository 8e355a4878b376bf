#!/usr/bin/env python3
"""System calls of one event, counted with strace: no noise, and no clock.

    python benchmarks/system_calls.py --loops asyncio,uvloop,aioqemu-epoll
    python benchmarks/system_calls.py --rows 'tcp-*,sleep_0' --by-name

A row runs with two counts of events, and the difference of what was called is divided
by the difference of the counts: what a start costs is not in it. Only calls between two
marks are looked at (`clock.py`), those of all threads. Of the rows with a server the
traced process is the server alone; the client is this one. What a child does before it
becomes its program is counted by itself, what the program does is not.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import clock
from children import HERE, Child, ChildFailed, python
from loops import LOOPS, spec_of
from machine import describe
from measure import probe_loop
from results import Cell, Results, RowResult

if TYPE_CHECKING:
    from collections.abc import Sequence

# Python 3.11 asks for its pid whenever it looks for the running loop, which is no doing
# of a loop, and slow under a tracer.
STRACE = ("strace", "-f", "-qq", "--seccomp-bpf", "-e", "trace=!getpid")
LOG = "strace"
OUTPUT = HERE.parent / "build" / "benchmarks" / "system_calls.json"
TIMEOUT = 60.0
BEFORE_EXEC = "before exec: "
MIB = 1 << 20


@dataclass(frozen=True)
class Counted:
    """A row that is counted.

    Attributes:
        name: of the micro row, of the kind of server, or of the disk row.
        counts: events of the two runs.
        how: "micro" (a program of its own), "echo" (a server and this client),
            "disk" (block requests; aioqemu only).
        size: bytes of a message.
        depth: block requests in flight.
    """

    name: str
    counts: tuple[int, int] = (200, 1200)
    how: Literal["micro", "echo", "disk"] = "micro"
    size: int = 1000
    depth: int = 32

    @property
    def kind(self) -> str:
        """The kind of server."""
        return "tcp-protocol" if self.name == "tcp-64k" else self.name


ROWS: tuple[Counted, ...] = (
    *(
        Counted(name)
        for name in (
            "call_soon_chain",
            "sleep_0",
            "future_from_callback",
            "create_task",
            "timeout_around_step",
            "threadsafe_own",
            "run_in_executor",
            "add_reader",
            "sock_recv_ready",
            "sock_recv_wait",
            "run_nothing",
        )
    ),
    Counted("call_soon_1000", (2000, 12000)),
    Counted("call_later_cancel", (2000, 12000)),
    Counted("timers_fire", (2000, 12000)),
    Counted("threadsafe_busy", (2000, 12000)),
    Counted("accept_storm", (100, 500)),
    Counted("udp_burst", (200, 2200)),
    Counted("udp_burst_send", (200, 2200)),
    Counted("spawn_wait", (10, 40)),
    Counted("loop_make_close", (10, 40)),
    *(
        Counted(kind, (50, 450), how="echo")
        for kind in (
            "tcp-protocol",
            "tcp-buffered",
            "tcp-streams",
            "tcp-own",
            "tcp-sock",
            "tcp-thrice",
            "unix-protocol",
            "udp-protocol",
            "tls-protocol",
            "tls-streams",
            "tls-own",
        )
    ),
    Counted("tcp-64k", (20, 120), how="echo", size=1 << 16),
    Counted("disk-null", (320, 3520), how="disk"),
    Counted("disk-cached", (320, 3520), how="disk"),
    Counted("disk-direct", (320, 3520), how="disk"),
)


def refusal() -> str | None:
    """Why nothing can be counted here, or None."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    words = [*STRACE, "-o", os.devnull, "true"]
    probe = subprocess.run(words, capture_output=True, text=True, check=False)
    return f"strace is refused: {probe.stderr.strip()}" if probe.returncode else None


CALL = re.compile(r"(\d+)\s+(\w+)\(")


def runs_of(lines: Sequence[str]) -> list[Counter[str]]:
    """Read a log: one counter for each run, of the calls between its marks.

    Calls of children until they become another program have a name of their own.
    """
    calls = [(found[1], found[2]) for line in lines if (found := CALL.match(line))]
    main = calls[0][0]
    children = {pid for pid, name in calls if name == "execve" and pid != main}
    programs: set[str] = set()
    runs: list[Counter[str]] = []
    counting = False
    for pid, name in calls:
        if name == clock.NEXT:
            runs.append(Counter())
        elif name in (clock.BEGIN, clock.END):
            counting = name == clock.BEGIN
        elif counting and pid not in programs:
            runs[-1][BEFORE_EXEC + name if pid in children else name] += 1
            if name == "execve":
                programs.add(pid)
    return runs


def _per_event(runs: list[Counter[str]], counts: tuple[int, int]) -> dict[str, float]:
    """What the last two runs differ in, for each event that they differ in."""
    few, many = runs[-2:]
    found = {
        name: (many[name] - few[name]) / (counts[1] - counts[0])
        for name in sorted(few.keys() | many.keys())
    }
    return {name: value for name, value in found.items() if value}


def _runs(folder: Path) -> list[Counter[str]]:
    return runs_of((folder / LOG).read_text(errors="replace").splitlines())


def _traced(folder: Path, words: Sequence[str]) -> Child:
    return Child([*STRACE, "-o", str(folder / LOG), *words])


def _micro(row: Counted, loop: str, folder: Path) -> dict[str, float]:
    few, many = row.counts
    marked = f"{few},{few},{many}"  # the first warms up
    words = python("micro.py", row.name, "--loop", loop, "--marked", marked)
    with _traced(folder, words) as child:
        child.receive(TIMEOUT)
        trouble = child.close(timeout=TIMEOUT)
    if trouble:
        raise ChildFailed(trouble)
    return _per_event(_runs(folder), row.counts)


def _connect(
    row: Counted, address: dict[str, Any], folder: Path
) -> socket.socket | ssl.SSLSocket:
    """Connect to a server as a client that is not measured."""
    if "path" in address:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(address["path"])
    elif row.name.startswith("udp"):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.connect((address["host"], address["port"]))
    else:
        sock = socket.create_connection((address["host"], address["port"]))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.settimeout(5)
    if not row.name.startswith("tls"):
        return sock
    context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    return context.wrap_socket(sock, server_hostname="localhost")


def _certificate(folder: Path) -> Path:
    try:
        import trustme
    except ImportError as exc:
        raise ChildFailed("TLS rows need the package trustme") from exc
    ca, path = trustme.CA(), folder / "server.pem"
    ca.cert_pem.write_to_path(str(folder / "ca.pem"))
    ca.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(path))
    return path


def _talk(sock: socket.socket, message: bytes, count: int) -> None:
    """Send, and take the whole answer, so often."""
    for _ in range(count):
        sock.sendall(message)
        missing = len(message)
        while missing:
            got = len(sock.recv(missing))
            if not got:
                raise ChildFailed("the server closed the connection")
            missing -= got


def _echo(row: Counted, loop: str, folder: Path) -> dict[str, float]:
    words = python("servers.py", "--loop", loop, "--kind", row.kind)
    words += ["--path", str(folder / "socket")]
    if row.name.startswith("tls"):
        words += ["--cert", str(_certificate(folder))]
    with _traced(folder, words) as child:
        address = child.receive(TIMEOUT)["address"]
        with _connect(row, address, folder) as sock:
            message = os.urandom(row.size)
            _talk(sock, message, row.counts[0])
            for count in row.counts:
                child.send("begin")
                child.receive(TIMEOUT)
                _talk(sock, message, count)
                child.send("end")
                child.receive(TIMEOUT)
        trouble = child.close(quit_command="quit", timeout=TIMEOUT)
    if trouble:
        raise ChildFailed(trouble)
    return _per_event(_runs(folder), row.counts)


def _disk(row: Counted, loop: str, folder: Path) -> dict[str, float]:
    if not spec_of(loop).ours:
        raise ChildFailed("has no block requests")
    fdmon = spec_of(loop).options["fdmon"]
    kind = row.name.partition("-")[2]
    image = folder / "image"
    with image.open("wb") as file:
        for _ in range(8):
            file.write(os.urandom(MIB))
        os.fsync(file.fileno())
    runs: list[Counter[str]] = []
    for count in row.counts:
        options = {
            "file": str(image),
            "direct": kind == "direct",
            "write": False,
            "size": 4096,
            "depth": row.depth,
            "count": count,
            "marks": True,
        }
        who = "aioqemu:null" if kind == "null" else "aioqemu:auto"
        words = python("disk_peers.py", who, json.dumps(options))
        with _traced(folder, ["env", f"AIOQEMU_FDMON={fdmon}", *words]) as child:
            child.receive(TIMEOUT)
            child.close(timeout=TIMEOUT)
        runs += _runs(folder)
    return _per_event(runs, row.counts)


def count(row: Counted, loop: str) -> dict[str, float]:
    """Count one row on one loop.

    Returns:
        Calls of one event, by name.

    Raises:
        ChildFailed: the loop cannot do the row; says why.
    """
    how = {"micro": _micro, "echo": _echo, "disk": _disk}[row.how]
    with tempfile.TemporaryDirectory(prefix="aioqemu-calls-") as folder:
        return how(row, loop, Path(folder))


def total(calls: dict[str, float]) -> float:
    """All calls of the process itself.

    Without those by which Python's threads wait for each other, and for the GIL: how
    many there are is chance, and the interpreter's doing.
    """
    left_out = (BEFORE_EXEC, "futex", "sched_yield")
    return sum(n for name, n in calls.items() if not name.startswith(left_out))


def _cell(row: Counted, loop: str) -> Cell:
    """Count, and keep the reason where that fails."""
    try:
        calls = count(row, loop)
    except ChildFailed as exc:
        return Cell(failed=str(exc))
    return Cell([{"events": 1, "calls": total(calls)}], extra={"calls": calls})


def _shown(cell: Cell) -> str:
    return f"{cell.rounds[0]['calls']:.2f}" if cell.good else "-"


def main() -> int:
    """Run as a script."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--loops", help="comma-separated (default: all that work)")
    parser.add_argument("--rows", default="*", help="comma-separated names or globs")
    parser.add_argument("--by-name", action="store_true", help="show which calls")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    args = parser.parse_args()
    if (reason := refusal()) is not None:
        print(reason, file=sys.stderr)
        return 1
    patterns = args.rows.split(",")
    rows = [row for row in ROWS if any(fnmatch.fnmatch(row.name, p) for p in patterns)]
    names = args.loops.split(",") if args.loops else list(LOOPS)
    loops = {name: probe_loop(name) for name in names}
    results = Results(describe(), {}, loops, "uvloop")
    for row in rows:
        print(f"{row.name:22}", end="", flush=True)
        cells = {name: _cell(row, name) for name in results.measured}
        print("".join(f" {_shown(cell):>8}" for cell in cells.values()), flush=True)
        results.rows.append(RowResult(row.name, row.name, "calls", "event", cells))
        for loop, cell in cells.items() if args.by_name else ():
            each = cell.extra.get("calls", {}).items()
            print(f"    {loop}:", *(f"{k} {v:.2f}" for k, v in each), sep="  ")
    for result in results.rows:
        for loop, cell in result.cells.items():
            if cell.failed is not None:
                print(f"no count of {result.name} on {loop}: {cell.failed}")
    results.save(args.output)
    print(args.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
