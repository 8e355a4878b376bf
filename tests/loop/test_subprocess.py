"""Rules of subprocesses: pipes, return codes, signals, many at once.

Children are the running interpreter or a shell; nothing else is needed.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
import warnings
from typing import Any

import pytest

from .helpers import cpu_seconds, new_like, skip_control

PIPE = subprocess.PIPE


@pytest.mark.asyncio
async def test_shell_output_and_return_code() -> None:
    process = await asyncio.create_subprocess_shell(
        "echo out; echo err >&2; exit 7", stdout=PIPE, stderr=PIPE
    )
    assert await process.communicate() == (b"out\n", b"err\n")
    assert process.returncode == 7


@pytest.mark.asyncio
async def test_exec_feeds_stdin() -> None:
    data = os.urandom(300_000)
    process = await asyncio.create_subprocess_exec("cat", stdin=PIPE, stdout=PIPE)
    out, err = await process.communicate(data)
    assert out == data
    assert err is None
    assert process.returncode == 0


@pytest.mark.asyncio
async def test_stderr_goes_into_stdout_when_asked() -> None:
    process = await asyncio.create_subprocess_shell(
        "echo one; echo two >&2", stdout=PIPE, stderr=subprocess.STDOUT
    )
    out, _ = await process.communicate()
    assert out == b"one\ntwo\n"


@pytest.mark.asyncio
@pytest.mark.parametrize("how", ["terminate", "kill", "send_signal"])
async def test_signals_end_a_child(how: str) -> None:
    process = await asyncio.create_subprocess_exec("sleep", "60")
    if how == "send_signal":
        process.send_signal(signal.SIGUSR1)  # not SIGINT: may be ignored
    else:
        getattr(process, how)()
    expected = {"terminate": -15, "kill": -9, "send_signal": -signal.SIGUSR1}[how]
    assert await asyncio.wait_for(process.wait(), 5) == expected
    # The stock transport says ProcessLookupError once the child is over.
    with pytest.raises(ProcessLookupError):
        process.kill()


@pytest.mark.asyncio
async def test_a_child_that_ends_at_once_is_noticed() -> None:
    for _ in range(10):
        process = await asyncio.create_subprocess_exec("true")
        assert await asyncio.wait_for(process.wait(), 5) == 0
        assert await process.wait() == 0


@pytest.mark.asyncio
async def test_many_children_at_once() -> None:
    async def one(number: int) -> tuple[bytes, int | None]:
        process = await asyncio.create_subprocess_shell(
            f"echo {number}; exit {number}", stdout=PIPE
        )
        out, _ = await process.communicate()
        return out, process.returncode

    results = await asyncio.gather(*(one(number) for number in range(20)))
    assert results == [(b"%d\n" % number, number) for number in range(20)]


@pytest.mark.asyncio
async def test_waiting_for_a_child_does_not_spin() -> None:
    process = await asyncio.create_subprocess_exec("sleep", "0.2")
    started = cpu_seconds()
    assert await process.wait() == 0
    assert cpu_seconds() - started < 0.1


@pytest.mark.asyncio
async def test_a_program_that_is_not_there() -> None:
    with pytest.raises(FileNotFoundError):
        await asyncio.create_subprocess_exec("/nonexistent/program")
    with pytest.raises(NotADirectoryError):
        await asyncio.create_subprocess_exec("true", cwd="/dev/null/x")


@pytest.mark.asyncio
async def test_options_of_popen_are_obeyed(tmp_path: Any) -> None:
    reader, writer = os.pipe()
    process = await asyncio.create_subprocess_shell(
        f'pwd; echo "$SPECIAL"; echo fd >/proc/self/fd/{writer}',
        cwd=tmp_path,
        env={"SPECIAL": "value", "PATH": os.environ["PATH"]},
        pass_fds=(writer,),
        start_new_session=True,
        stdout=PIPE,
        stderr=subprocess.DEVNULL,
    )
    os.close(writer)
    out, _ = await process.communicate()
    lines = out.decode().splitlines()
    assert lines[:2] == [str(tmp_path), "value"]
    assert os.read(reader, 10) == b"fd\n"
    os.close(reader)


@pytest.mark.asyncio
async def test_descriptors_do_not_leak_into_a_child() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        "import os; print(len(os.listdir('/proc/self/fd')))",
        stdout=PIPE,
    )
    out, _ = await process.communicate()
    # Three standard ones and the listing's own.
    assert int(out) == 4


@pytest.mark.asyncio
async def test_the_protocol_is_told_in_order() -> None:
    calls: list[Any] = []
    done = asyncio.get_running_loop().create_future()

    class Told(asyncio.SubprocessProtocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            calls.append("made")

        def pipe_data_received(self, fd: int, data: bytes) -> None:
            calls.append((fd, data))

        def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
            calls.append(("lost", fd))

        def process_exited(self) -> None:
            calls.append("exited")

        def connection_lost(self, exc: Exception | None) -> None:
            done.set_result(exc)

    loop = asyncio.get_running_loop()
    transport, _ = await loop.subprocess_shell(Told, "echo hi", stdin=None, stderr=None)
    assert isinstance(transport, asyncio.SubprocessTransport)
    assert transport.get_pid() > 0
    assert transport.get_pipe_transport(1) is not None
    assert await asyncio.wait_for(done, 5) is None
    assert calls[0] == "made"
    assert (1, b"hi\n") in calls
    assert ("lost", 1) in calls
    assert "exited" in calls
    assert transport.get_returncode() == 0
    transport.close()


@pytest.mark.asyncio
async def test_closing_the_transport_kills_the_child() -> None:
    loop = asyncio.get_running_loop()
    transport, _ = await loop.subprocess_exec(asyncio.SubprocessProtocol, "sleep", "60")
    pid = transport.get_pid()
    transport.close()
    transport.close()
    for _ in range(500):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            break
        await asyncio.sleep(0.005)
    else:
        pytest.fail("the child is still there")


@pytest.mark.asyncio
async def test_a_cancelled_wait_leaves_the_child_alone() -> None:
    process = await asyncio.create_subprocess_exec("cat", stdin=PIPE, stdout=PIPE)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(process.wait(), 0.02)
    assert process.returncode is None
    assert await process.communicate(b"still there") == (b"still there", None)
    assert process.returncode == 0


@pytest.mark.asyncio
async def test_a_large_output_is_read_whole() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "print('x' * 2_000_000)", stdout=PIPE
    )
    out, _ = await process.communicate()
    assert len(out) == 2_000_001


@pytest.mark.asyncio
async def test_text_options_are_refused() -> None:
    loop = asyncio.get_running_loop()
    factory = asyncio.SubprocessProtocol
    for option, message in (
        ({"universal_newlines": True}, "universal_newlines must be False"),
        ({"bufsize": 4}, "bufsize must be 0"),
        ({"text": True}, "text must be False"),
        ({"encoding": "utf8"}, "encoding must be None"),
        ({"errors": "strict"}, "errors must be None"),
        ({"shell": True}, "shell must be False"),
    ):
        with pytest.raises(ValueError, match=message):
            await loop.subprocess_exec(factory, "true", **option)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="cmd must be a string"):
        await loop.subprocess_shell(factory, ["true"])  # type: ignore[arg-type]


def test_children_in_a_loop_of_another_thread(
    any_loop: asyncio.AbstractEventLoop,
) -> None:
    results: list[Any] = []
    other = new_like(any_loop)

    async def main() -> None:
        process = await asyncio.create_subprocess_exec("echo", "hi", stdout=PIPE)
        results.append(await process.communicate())

    def run() -> None:
        other.run_until_complete(main())
        other.close()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(10)
    assert results == [(b"hi\n", None)]


@pytest.mark.asyncio
async def test_children_without_pidfd(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(pid: int, flags: int = 0) -> int:
        raise PermissionError

    monkeypatch.setattr(os, "pidfd_open", refused)
    skip_control("leaves threads behind for a while")
    threads = threading.active_count()
    quick = await asyncio.create_subprocess_exec("true")
    slow = await asyncio.create_subprocess_exec("sleep", "60")
    assert threading.active_count() == threads
    assert await asyncio.wait_for(quick.wait(), 5) == 0
    slow.kill()
    assert await asyncio.wait_for(slow.wait(), 5) == -signal.SIGKILL


def test_nothing_waits_for_a_child_after_close(
    loop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "pidfd_open")
    threads = threading.enumerate()
    process = loop.run_until_complete(
        loop.subprocess_exec(
            asyncio.SubprocessProtocol,
            "sleep",
            "60",
            stdin=None,
            stdout=None,
            stderr=None,
        )
    )[0]
    child = process.get_extra_info("subprocess")
    loop.close()
    assert threading.enumerate() == threads
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        del process
        gc.collect()
    child.kill()
    child.wait()
