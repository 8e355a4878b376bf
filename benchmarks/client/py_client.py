"""Load generator in Python, for where the C client cannot be built.

Blocking sockets, one message in flight on each: sends on all connections, then
receives on all of them, so that the server always has work. Same options and same JSON
as `echo_client.c`. Slower than that one: look at the client's share of its core before
believing messages a second; server CPU time per message stands.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import ssl
import sys
import threading
import time

TIMEOUT = 5.0


def server_clock(pid: int) -> int:
    """Give the id of the CPU clock of another process (as clock_getcpuclockid)."""
    return (~pid << 3) | 2


def connect(args: argparse.Namespace) -> socket.socket:
    """Open one connection."""
    if args.transport == "unix":
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(TIMEOUT)
        sock.connect(args.path)
        return sock
    sock = socket.create_connection((args.host, args.port), TIMEOUT)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if args.transport != "tls":
        return sock
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # the certificate was made for this run
    return context.wrap_socket(sock)


def receive(sock: socket.socket, size: int) -> bytes:
    """Receive a whole message."""
    data = sock.recv(size)
    if len(data) == size:
        return data
    parts = [data]
    left = size - len(data)
    while left:
        data = sock.recv(left)
        if not data:
            raise ConnectionError("the server closed a connection")
        parts.append(data)
        left -= len(data)
    return b"".join(parts)


def one_round(socks: list[socket.socket], message: bytes) -> list[int]:
    """Send and receive once on every connection.

    Returns:
        The latencies in ns.
    """
    clock = time.perf_counter_ns
    # beyond what socket buffers hold, a blocking send of all would wait for ever
    group = len(socks) if len(message) <= 16384 else 1
    taken: list[int] = []
    for start in range(0, len(socks), group):
        sent: list[int] = []
        batch = socks[start : start + group]
        for sock in batch:
            sent.append(clock())
            exchange_send(sock, message)
        for sock, when in zip(batch, sent, strict=True):
            if receive(sock, len(message)) != message:
                raise ValueError("the echo differs from what was sent")
            taken.append(clock() - when)
    return taken


def exchange_send(sock: socket.socket, message: bytes) -> None:
    """Send a message; a large one goes out from a thread, since the echo comes back."""
    if len(message) <= 16384:
        sock.sendall(message)
    else:
        threading.Thread(target=sock.sendall, args=(message,)).start()


def run(args: argparse.Namespace) -> dict[str, object]:
    """Warm up, measure."""
    socks = [connect(args) for _ in range(args.connections)]
    message = bytes(i % 251 for i in range(args.size))
    clock = server_clock(args.server_pid)
    end = time.monotonic() + args.warmup
    one_round(socks, message)
    while time.monotonic() < end:
        one_round(socks, message)
    taken: list[int] = []
    start = time.monotonic_ns()
    server, client = time.clock_gettime_ns(clock), time.process_time_ns()
    stop = start + int(args.duration * 1e9)
    while time.monotonic_ns() < stop:
        taken += one_round(socks, message)
    wall = time.monotonic_ns() - start
    server = time.clock_gettime_ns(clock) - server
    client = time.process_time_ns() - client
    taken.sort()

    def percentile(share: float) -> float:
        return taken[int(len(taken) * share)] / 1000

    return {
        "client": "Python",
        "messages": len(taken),
        "wall_ns": wall,
        "server_cpu_ns": server,
        "client_cpu_ns": client,
        "lost": 0,
        "mean_us": sum(taken) / len(taken) / 1000,
        "p50_us": percentile(0.5),
        "p90_us": percentile(0.9),
        "p99_us": percentile(0.99),
        "max_us": taken[-1] / 1000,
    }


def main() -> int:
    """Run as a script."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--transport", choices=("tcp", "unix", "tls"), required=True)
    parser.add_argument("--mode", choices=("echo",), default="echo")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int)
    parser.add_argument("--path")
    parser.add_argument("--connections", type=int, default=100)
    parser.add_argument("--size", type=int, default=1000)
    parser.add_argument("--warmup", type=float, default=0.2)
    parser.add_argument("--duration", type=float, default=1.0)
    parser.add_argument("--server-pid", type=int, required=True)
    parser.add_argument("--cpu", type=int)
    args = parser.parse_args()
    # a hung server or a lost parent must not leave this process behind
    signal.alarm(int(args.warmup + args.duration) + 20)
    if args.cpu is not None:
        os.sched_setaffinity(0, {args.cpu})
    try:
        found = run(args)
    except (OSError, ValueError) as exc:
        found = {"error": f"{type(exc).__name__}: {exc}"}
    print(json.dumps(found), flush=True)
    return 1 if "error" in found else 0


if __name__ == "__main__":
    sys.exit(main())
