"""Drives the application rows: wrk for HTTP, and a WebSocket client on plain epoll.

``python application_clients.py wrk --host H --port P --connections N --size S`` prints
one JSON line when it drives, and goes on until standard input gets a line or ends; then
it prints what it found. The other one, ``websocket``, has one message in flight on
each connection, as `echo_client.c` has, sends frames that were made beforehand, and
compares every echo: it is one and the same for all loops, and cheap enough that the
server is what is busy. It knows nothing of loops, rows or results.
"""

from __future__ import annotations

import argparse
import base64
import ctypes
import http.client
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

REPORT = Path(__file__).resolve().parent / "client" / "report.lua"
TIMEOUT = 5.0
LONGEST = 600
"""Seconds after which wrk ends by itself."""
PR_SET_PDEATHSIG = 1
BINARY_FRAME = 0x82
MASKED = 0x80
MASK = b"\x37\xfa\x21\x3d"


def say(message: dict[str, Any]) -> None:
    """Print one JSON line to whoever started this process."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def ends_with_its_parent(number: int = signal.SIGKILL) -> Callable[[], None]:
    """Give the function for a child to call: it gets a signal when its parent ends."""
    prctl = ctypes.CDLL(None).prctl

    def ask() -> None:
        prctl(PR_SET_PDEATHSIG, int(number))

    return ask


def look_once(args: argparse.Namespace) -> None:
    """Ask for the page once.

    Raises:
        ValueError: it is not what the row serves.
    """
    connection = http.client.HTTPConnection(args.host, args.port, timeout=TIMEOUT)
    connection.request("GET", args.path)
    answer = connection.getresponse()
    found = (answer.status, len(answer.read()))
    connection.close()
    if found != (200, args.size):
        raise ValueError(f"status and length {found}, not {(200, args.size)}")


def drive_wrk(args: argparse.Namespace) -> dict[str, Any]:
    """Run wrk until we are told to stop.

    Raises:
        ValueError: there were errors, or wrk ended in another way than told.
    """
    program = shutil.which("wrk")
    if program is None:
        raise ValueError("there is no wrk")
    look_once(args)
    command = [program, "--threads", "1", "--connections", str(args.connections)]
    command += ["--duration", f"{LONGEST}s", "--script", str(REPORT)]
    command += [f"http://{args.host}:{args.port}{args.path}"]
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=ends_with_its_parent(),
    ) as process:
        say({"pid": process.pid})
        sys.stdin.readline()
        process.send_signal(signal.SIGINT)
        try:
            printed, _ = process.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            raise ValueError("wrk did not end when it was told to") from None
    return read_report(printed)


def read_report(printed: str) -> dict[str, Any]:
    """Take the figures out of what wrk printed.

    Raises:
        ValueError: requests failed, or there are no figures.
    """
    for line in printed.splitlines():
        mark, _, text = line.partition(" ")
        if mark == "result":
            found: dict[str, Any] = json.loads(text)
            errors = {key: val for key, val in found.pop("errors").items() if val}
            if errors:
                told = ", ".join(f"{val} {key}" for key, val in errors.items())
                raise ValueError(f"wrk had errors: {told}")
            if not found.pop("requests"):
                raise ValueError("wrk had no answer")
            return {**found, "client": "wrk"}
    raise ValueError(f"wrk ended: {printed.strip().splitlines()[-1:]}")


def frame(payload: bytes, *, masked: bool) -> bytes:
    """Make one frame, as a client (masked) or as a server sends it."""
    bit = MASKED if masked else 0
    size = len(payload)
    if size < 126:
        head = bytes([BINARY_FRAME, bit | size])
    elif size < 1 << 16:
        head = bytes([BINARY_FRAME, bit | 126]) + size.to_bytes(2, "big")
    else:
        head = bytes([BINARY_FRAME, bit | 127]) + size.to_bytes(8, "big")
    if not masked:
        return head + payload
    mask = MASK * (size // 4 + 1)
    mixed = bytes(a ^ b for a, b in zip(payload, mask, strict=False))
    return head + MASK + mixed


def connect(args: argparse.Namespace) -> socket.socket:
    """Open one WebSocket connection.

    Raises:
        ValueError: the server did not agree.
    """
    sock = socket.create_connection((args.host, args.port), TIMEOUT)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    key = base64.b64encode(os.urandom(16)).decode()
    lines = [
        "GET / HTTP/1.1",
        f"Host: {args.host}:{args.port}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {key}",
        "Sec-WebSocket-Version: 13",
    ]
    sock.sendall("\r\n".join([*lines, "", ""]).encode())
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        more = sock.recv(4096)
        if not more:
            raise ValueError(f"closed during the handshake: {answer!r}")
        answer += more
    if not answer.startswith(b"HTTP/1.1 101 "):
        raise ValueError(f"no WebSocket: {answer[:100]!r}")
    return sock


def drive_websocket(args: argparse.Namespace) -> dict[str, Any]:
    """Exchange messages on all connections until we are told to stop.

    Raises:
        ValueError: an echo differs from what was sent.
        ConnectionError: the server closed a connection.
    """
    payload = bytes(index % 251 for index in range(args.size))
    request, expected = frame(payload, masked=True), frame(payload, masked=False)
    socks = {sock.fileno(): sock for sock in map(connect, [args] * args.connections)}
    poll = select.epoll()
    for fd in (sys.stdin.fileno(), *socks):
        poll.register(fd, select.EPOLLIN)
    clock = time.perf_counter_ns
    say({"pid": os.getpid()})
    parts = dict.fromkeys(socks, b"")
    sent: dict[int, int] = {}
    for fd, sock in socks.items():
        sent[fd] = clock()
        sock.sendall(request)
    taken: list[int] = []
    while True:
        events = poll.poll(TIMEOUT)
        if not events:
            raise ValueError(f"no echo within {TIMEOUT:g} s")
        for fd, _ in events:
            if fd not in socks:
                return summary(taken, socks.values())
            data = socks[fd].recv(len(expected) + 1)
            if not data:
                raise ConnectionError("the server closed a connection")
            data = parts[fd] + data
            if len(data) < len(expected):
                parts[fd] = data
                continue
            if data != expected:
                raise ValueError("the echo differs from what was sent")
            parts[fd] = b""
            now = clock()
            taken.append(now - sent[fd])
            sent[fd] = now
            socks[fd].sendall(request)


def summary(taken: list[int], socks: Any) -> dict[str, Any]:
    """Close the connections and sum up the latencies."""
    for sock in socks:
        sock.close()
    if not taken:
        raise ValueError("no echo came")
    taken.sort()
    return {
        "p50_us": taken[len(taken) // 2] / 1000,
        "p99_us": taken[len(taken) * 99 // 100] / 1000,
        "client": "epoll",
    }


def main() -> int:
    """Run as a script."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("driver", choices=("wrk", "websocket"))
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--path", default="/")
    parser.add_argument("--size", type=int, required=True, help="bytes of an answer")
    parser.add_argument("--connections", type=int, required=True)
    parser.add_argument("--cpu", type=int)
    args = parser.parse_args()
    if args.cpu is not None:
        os.sched_setaffinity(0, {args.cpu})
    drive = drive_wrk if args.driver == "wrk" else drive_websocket
    try:
        say(drive(args))
    except (ValueError, OSError) as exc:
        say({"error": f"{type(exc).__name__}: {exc}"})
    return 0


if __name__ == "__main__":
    sys.exit(main())
