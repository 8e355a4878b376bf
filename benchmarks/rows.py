"""What is measured: one `Row` a line of the table.

Pure data. A server row names a kind of server of `servers.py` and how the client
drives it; a micro row names a function of `micro_rows.py` and its fixed count. To add a
row, add a line here (and, for a new kind, a function there).
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: what `--rows` calls it; the key in the JSON.
        title: what the table calls it.
        group: "server" (a client in another process) or "micro" (no client).
        unit: what one event is.
        quick: whether `--quick` runs it.
        transport: of a server row.
        api: which asyncio API the server is written on; "own" is the streams of the
            loop's package, asyncio's where it has none; "thrice" writes each echo in
            three writes, "spinning" has a thread that computes beside the loop.
        mode: what the client does: "echo" or "accept" (connect, be closed, again).
        size: bytes a message, None for what `--size` says.
        connections: None for what `--connections` says.
        count: events of one run of a micro row; fixed, since a cost may depend on it.
        polling: whether loops that can are told to poll before they wait.
        pinned: whether a micro row has one core only; two threads need two.
        scalable: whether fewer events than `count` still measure the same.
        package: without which it cannot be measured.
        rounds: at most so many, of a row that takes long.
        alone: whether the processes of the other loops must not be there meanwhile.
        bare: whether a server in C without any loop is measured, too (full runs).
    """

    name: str
    title: str
    group: Literal["server", "micro"] = "server"
    unit: str = "message"
    quick: bool = True
    transport: Literal["tcp", "unix", "tls", "udp"] = "tcp"
    api: Literal[
        "protocol", "buffered", "streams", "own", "sock", "accept", "thrice", "spinning"
    ] = "protocol"
    mode: Literal["echo", "accept"] = "echo"
    size: int | None = None
    connections: int | None = None
    count: int = 0
    polling: bool = False
    pinned: bool = True
    scalable: bool = True
    package: str = ""
    rounds: int | None = None
    alone: bool = False
    bare: bool = False

    @property
    def server_kind(self) -> str:
        """The name of the server in `servers.py`."""
        return f"{self.transport}-{self.api}"


def _micro(
    name: str,
    title: str,
    count: int,
    *,
    quick: bool = True,
    pinned: bool = True,
    scalable: bool = True,
) -> Row:
    return Row(
        name,
        title,
        group="micro",
        unit="event",
        quick=quick,
        count=count,
        pinned=pinned,
        scalable=scalable,
    )


def _pyperformance(name: str) -> Row:
    return Row(
        f"pp_{name}",
        f"pyperformance {name}",
        group="micro",
        unit="run",
        quick=False,
        count=1,
        pinned=True,
        scalable=False,
        package="pyperformance",
        rounds=3,
        alone=True,  # their ports are fixed
    )


KIB = 1024

ROWS: tuple[Row, ...] = (
    Row("tcp-protocol", "TCP echo, Protocol", api="protocol", bare=True),
    Row("tcp-buffered", "TCP echo, BufferedProtocol", api="buffered"),
    Row("tcp-streams", "TCP echo, asyncio streams", api="streams"),
    Row("tcp-own-streams", "TCP echo, the loop's own streams", api="own"),
    Row("tcp-sock", "TCP echo, sock_recv + sock_sendall", api="sock"),
    Row("tcp-one", "TCP echo, Protocol, 1 connection", connections=1),
    Row(
        "tcp-one-polling",
        "TCP echo, 1 connection, poll_max_ns on",
        connections=1,
        polling=True,
        quick=False,
    ),
    Row(
        "tcp-spinning",
        "TCP echo, 1 connection, a thread computes",
        api="spinning",
        connections=1,
        alone=True,
        quick=False,
    ),
    Row("tcp-thrice", "TCP echo, three writes each", api="thrice", quick=False),
    Row("tcp-64k", "TCP echo, Protocol, 64 KiB", size=64 * KIB, connections=16),
    Row(
        "tcp-64k-buffered",
        "TCP echo, BufferedProtocol, 64 KiB",
        api="buffered",
        size=64 * KIB,
        connections=16,
        quick=False,
    ),
    Row(
        "tcp-1m",
        "TCP echo, Protocol, 1 MiB",
        size=KIB * KIB,
        connections=8,
        quick=False,
    ),
    Row(
        "tcp-accept",
        "TCP accept storm",
        api="accept",
        mode="accept",
        unit="connection",
        connections=64,
        bare=True,
    ),
    Row("unix-protocol", "Unix echo, Protocol", transport="unix", bare=True),
    Row(
        "unix-buffered",
        "Unix echo, BufferedProtocol",
        transport="unix",
        api="buffered",
        quick=False,
    ),
    Row("unix-streams", "Unix echo, asyncio streams", transport="unix", api="streams"),
    Row(
        "unix-own-streams",
        "Unix echo, the loop's own streams",
        transport="unix",
        api="own",
        quick=False,
    ),
    Row(
        "unix-sock",
        "Unix echo, sock_recv + sock_sendall",
        transport="unix",
        api="sock",
        quick=False,
    ),
    Row("tls-protocol", "TLS echo, Protocol", transport="tls"),
    Row(
        "tls-buffered",
        "TLS echo, BufferedProtocol",
        transport="tls",
        api="buffered",
        quick=False,
    ),
    Row("tls-streams", "TLS echo, asyncio streams", transport="tls", api="streams"),
    Row(
        "tls-own-streams",
        "TLS echo, the loop's own streams",
        transport="tls",
        api="own",
        quick=False,
    ),
    Row("udp-protocol", "UDP echo, DatagramProtocol", transport="udp"),
    Row(
        "udp-sock", "UDP echo, sock_recvfrom + sock_sendto", transport="udp", api="sock"
    ),
    _micro("call_soon_chain", "call_soon chain", 100_000),
    _micro("call_soon_1000", "call_soon, 1000 a pass", 200_000),
    _micro("sleep_0", "await sleep(0)", 100_000),
    _micro("future_from_callback", "future set by a callback", 50_000),
    _micro("create_task", "create_task + await", 30_000),
    _micro("call_later_cancel", "call_later + cancel, 100 k pending", 50_000),
    _micro("timeout_around_step", "asyncio.timeout() around a step", 20_000),
    _micro("timers_fire", "timers firing, 100 k", 100_000, scalable=False),
    _micro("threadsafe_own", "call_soon_threadsafe, own thread", 50_000),
    _micro(
        "threadsafe_other", "call_soon_threadsafe, other thread", 50_000, pinned=False
    ),
    _micro("run_in_executor", "run_in_executor(None)", 3_000, pinned=False),
    _micro("add_reader", "add_reader callback", 50_000),
    _micro("sock_recv_ready", "sock_recv, data there", 30_000),
    _micro("sock_recv_wait", "sock_recv, must wait", 15_000),
    _micro("udp_burst", "UDP receive, 50 waiting at once", 20_000),
    _micro("udp_burst_send", "UDP send, 50 in a callback", 20_000),
    _micro("accept_storm", "accept, 500 waiting at once", 2_000),
    _micro("run_nothing", "run_until_complete of nothing", 5_000),
    _micro("loop_make_close", "loop made, run, closed", 300),
    _micro("spawn_wait", "subprocess spawn + wait", 40),
    _micro("spawn_wait_1gib", "subprocess spawn + wait, 1 GiB in use", 40, quick=False),
    _micro("pipe_read", "64 KiB from a subprocess's pipe", 2_000, pinned=False),
    _pyperformance("async_generators"),
    _pyperformance("async_tree_none"),
    _pyperformance("async_tree_none_tg"),
    _pyperformance("async_tree_io"),
    _pyperformance("async_tree_memoization"),
    _pyperformance("async_tree_cpu_io_mixed"),
    _pyperformance("asyncio_tcp"),
    _pyperformance("asyncio_tcp_ssl"),
    _pyperformance("asyncio_websockets"),
)


def select(patterns: str | None, *, quick: bool) -> list[Row]:
    """Choose rows by a comma-separated list of names, globs or group names.

    Args:
        patterns: None for all rows (with `quick`: those of the quick set).
        quick: whether the quick set is the default.

    Raises:
        ValueError: a pattern that no row has.
    """
    if patterns is None:
        return [row for row in ROWS if row.quick or not quick]
    wanted = [part.strip() for part in patterns.split(",") if part.strip()]
    for part in wanted:
        if not any(_matches(row, part) for row in ROWS):
            raise ValueError(f"no row matches {part!r} (see --list)")
    return [row for row in ROWS if any(_matches(row, part) for part in wanted)]


def row_named(name: str) -> Row:
    """Find one row.

    Raises:
        ValueError: there is none of that name.
    """
    for row in ROWS:
        if row.name == name:
            return row
    raise ValueError(f"no row {name!r}")


def _matches(row: Row, pattern: str) -> bool:
    return pattern == row.group or fnmatchcase(row.name, pattern)
