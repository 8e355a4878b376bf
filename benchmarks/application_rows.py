"""What is measured with applications on top: one `Application` a line of the table.

Pure data, as `rows.py` is: which server or program the measured process runs
(`application_servers.py`), who drives it (`application_clients.py`), and what has to
be installed for that. It knows no loops and starts nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from rows import Row

HELLO = b"Hello, world!"
LARGE = 64 * 1024
"""Bytes of the larger response."""
FETCHED = 1000
"""Rows of the larger query."""


@dataclass(frozen=True)
class Application(Row):
    """One line of the table.

    Attributes:
        driver: who makes the requests: wrk, our WebSocket client, or the measured
            process itself (then it is the client of a database).
        path: what is asked for, of HTTP rows.
        packages: Python packages that the measured process imports.
    """

    driver: Literal["wrk", "websocket", "itself"] = "wrk"
    path: str = "/"
    packages: tuple[str, ...] = ()


APPLICATIONS: tuple[Application, ...] = (
    Application(
        "http-uvicorn",
        "HTTP hello, uvicorn + httptools",
        unit="request",
        packages=("uvicorn", "httptools"),
    ),
    Application(
        "http-aiohttp",
        "HTTP hello, aiohttp",
        unit="request",
        packages=("aiohttp",),
    ),
    Application(
        "http-aiohttp-64k",
        "HTTP 64 KiB, aiohttp",
        unit="request",
        path="/large",
        connections=16,
        packages=("aiohttp",),
    ),
    Application(
        "websocket-echo",
        "WebSocket echo, websockets",
        driver="websocket",
        packages=("websockets",),
    ),
    Application(
        "postgres-select",
        "PostgreSQL select 1, asyncpg",
        unit="query",
        driver="itself",
        connections=8,
        packages=("asyncpg",),
    ),
    Application(
        "postgres-rows",
        "PostgreSQL 1000 rows, asyncpg",
        unit="query",
        driver="itself",
        connections=8,
        packages=("asyncpg",),
    ),
)


def select(patterns: str | None) -> list[Application]:
    """Choose rows by comma-separated names or globs; all of them without.

    Raises:
        ValueError: a pattern matches nothing.
    """
    if not patterns:
        return list(APPLICATIONS)
    wanted = [part.strip() for part in patterns.split(",") if part.strip()]
    for part in wanted:
        if not any(fnmatchcase(row.name, part) for row in APPLICATIONS):
            known = ", ".join(row.name for row in APPLICATIONS)
            raise ValueError(f"no row {part!r}: of {known}")
    return [
        row
        for row in APPLICATIONS
        if any(fnmatchcase(row.name, part) for part in wanted)
    ]
