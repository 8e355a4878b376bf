"""qemu.qmp, QEMU's own client library, against a fake QMP server written here.

The fake speaks the greeting, capabilities, errors and events. Where QEMU itself
is installed the same client is run against a machine of type "none".
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("qemu.qmp")
from qemu.qmp import EventListener, ExecuteError, QMPClient

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = [pytest.mark.integration, pytest.mark.asyncio]
VERSION = {"qemu": {"major": 10, "minor": 0, "micro": 0}, "package": "fake"}
EMULATOR = "qemu-system-x86_64"


async def _messages(reader: asyncio.StreamReader) -> AsyncIterator[dict[str, Any]]:
    """Cut what a client sends into messages; nothing need stand between them."""
    decoder, text = json.JSONDecoder(), ""
    while data := await reader.read(1 << 16):
        text += data.decode()
        while text := text.lstrip():
            try:
                message, end = decoder.raw_decode(text)
            except json.JSONDecodeError:
                break
            text = text[end:]
            yield message


class FakeQemu:
    """A QMP server with a machine that can only be stopped and continued."""

    def __init__(self) -> None:
        self.running = True
        self.writers: set[asyncio.StreamWriter] = set()

    async def serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Serve one monitor until the client leaves."""
        self.writers.add(writer)
        greeting = {"version": VERSION, "capabilities": ["oob"]}
        self.send(writer, {"QMP": greeting})
        negotiated = False
        async for message in _messages(reader):
            command = message.get("execute") or message.get("exec-oob")
            if not negotiated and command != "qmp_capabilities":
                answer: dict[str, Any] = {
                    "error": {"class": "CommandNotFound", "desc": "negotiate first"}
                }
            else:
                negotiated = True
                answer = self.execute(command, message.get("arguments", {}))
            if "id" in message:
                answer["id"] = message["id"]
            self.send(writer, answer)
        self.writers.discard(writer)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    def execute(self, command: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Run one command and return its answer."""
        if command == "query-status":
            status = "running" if self.running else "paused"
            return {"return": {"status": status, "running": self.running}}
        if command == "query-version":
            return {"return": VERSION}
        if command in ("stop", "cont"):
            self.running = command == "cont"
            self.event("RESUME" if self.running else "STOP")
            return {"return": {}}
        if command == "qmp_capabilities":
            return {"return": {}}
        if command == "echo":
            return {"return": arguments}
        desc = f"The command {command} has not been found"
        return {"error": {"class": "CommandNotFound", "desc": desc}}

    def event(self, name: str) -> None:
        """Tell every monitor of an event."""
        stamp = {"seconds": 1, "microseconds": 2}
        for writer in self.writers:
            self.send(writer, {"event": name, "data": {}, "timestamp": stamp})

    def send(self, writer: asyncio.StreamWriter, message: dict[str, Any]) -> None:
        """Write one message, a line of JSON."""
        writer.write(json.dumps(message).encode() + b"\r\n")


@contextlib.asynccontextmanager
async def _fake(tmp_path: Path) -> AsyncIterator[str]:
    path = str(tmp_path / "qmp")
    server = await asyncio.start_unix_server(FakeQemu().serve, path)
    yield path
    server.close()
    await asyncio.sleep(0.005)


async def test_commands_are_answered(tmp_path: Path) -> None:
    async with _fake(tmp_path) as path:
        client = QMPClient("test")
        await client.connect(path)
        assert await client.execute("query-version") == VERSION
        status: Any = await client.execute("query-status")
        assert status["running"] is True
        with pytest.raises(ExecuteError, match="has not been found"):
            await client.execute("launch-missiles")
        await client.disconnect()


async def test_many_commands_in_flight(tmp_path: Path) -> None:
    async with _fake(tmp_path) as path:
        client = QMPClient("test")
        await client.connect(path)
        answers = await asyncio.gather(
            *(client.execute("echo", {"n": n, "pad": "x" * 500}) for n in range(100))
        )
        assert [answer["n"] for answer in answers] == list(range(100))  # type: ignore[index, call-overload]
        await client.disconnect()


async def test_events_are_heard(tmp_path: Path) -> None:
    async with _fake(tmp_path) as path:
        client = QMPClient("test")
        await client.connect(path)
        with client.listener(("STOP", "RESUME")) as events:
            assert isinstance(events, EventListener)
            await client.execute("stop")
            assert (await asyncio.wait_for(events.get(), 5))["event"] == "STOP"
            await client.execute("cont")
            assert (await asyncio.wait_for(events.get(), 5))["event"] == "RESUME"
        await client.disconnect()


async def test_a_client_can_come_back(tmp_path: Path) -> None:
    async with _fake(tmp_path) as path:
        client = QMPClient("test")
        for _ in range(3):
            await client.connect(path)
            assert await client.execute("query-version") == VERSION
            await client.disconnect()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which(EMULATOR) is None, reason=f"no {EMULATOR}")
async def test_qemu_itself_is_driven(tmp_path: Path) -> None:
    path = str(tmp_path / "qmp")
    client = QMPClient("test")
    await client.start_server(path)
    process = await asyncio.create_subprocess_exec(
        *(EMULATOR, "-M", "none", "-nodefaults", "-display", "none", "-S"),
        *("-chardev", f"socket,id=qmp,path={path}", "-mon", "chardev=qmp,mode=control"),
    )
    await asyncio.wait_for(client.accept(), 20)
    status: Any = await client.execute("query-status")
    assert status["status"] == "prelaunch"
    with client.listener("SHUTDOWN") as events:
        await client.execute("quit")
        assert (await asyncio.wait_for(events.get(), 20))["event"] == "SHUTDOWN"
    with contextlib.suppress(Exception):
        await client.disconnect()
    assert await asyncio.wait_for(process.wait(), 20) == 0
