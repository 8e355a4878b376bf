"""Rules of run_in_executor and of the default executor's end."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import socket
import sys
import threading
import time

import pytest

pytestmark = pytest.mark.asyncio


async def test_a_function_runs_in_another_thread() -> None:
    loop = asyncio.get_running_loop()
    thread = await loop.run_in_executor(None, threading.get_ident)
    assert thread != threading.get_ident()
    assert await loop.run_in_executor(None, max, 3, 7) == 7


async def test_its_exception_is_raised_where_it_is_awaited() -> None:
    loop = asyncio.get_running_loop()
    with pytest.raises(ZeroDivisionError):
        await loop.run_in_executor(None, lambda: 1 / 0)


async def test_the_loop_goes_on_meanwhile() -> None:
    loop = asyncio.get_running_loop()
    release = threading.Event()
    waiting = loop.run_in_executor(None, release.wait, 5)
    assert isinstance(waiting, asyncio.Future)
    await asyncio.sleep(0.002)
    assert not waiting.done()
    release.set()
    assert await waiting is True


async def test_many_calls_all_come_back() -> None:
    loop = asyncio.get_running_loop()
    calls = [loop.run_in_executor(None, pow, number, 2) for number in range(500)]
    assert await asyncio.gather(*calls) == [number**2 for number in range(500)]


async def test_another_executor_is_used_when_given() -> None:
    loop = asyncio.get_running_loop()
    with concurrent.futures.ThreadPoolExecutor(1, "mine") as pool:
        name = await loop.run_in_executor(pool, lambda: threading.current_thread().name)
        assert name.startswith("mine")


async def test_the_default_executor_can_be_set() -> None:
    loop = asyncio.get_running_loop()
    pool = concurrent.futures.ThreadPoolExecutor(1, "mine")
    loop.set_default_executor(pool)
    name = await loop.run_in_executor(None, lambda: threading.current_thread().name)
    assert name.startswith("mine")
    with pytest.raises(TypeError, match="must be ThreadPoolExecutor instance"):
        loop.set_default_executor(object())  # type: ignore[arg-type]


async def test_a_cancelled_call_that_waits_its_turn_is_not_run() -> None:
    loop = asyncio.get_running_loop()
    ran: list[str] = []
    release = threading.Event()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        first = loop.run_in_executor(pool, release.wait, 5)
        second = loop.run_in_executor(pool, ran.append, "second")
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        release.set()
        await first
    assert ran == []


async def test_to_thread_carries_the_context() -> None:
    var: contextvars.ContextVar[str] = contextvars.ContextVar("var")
    var.set("carried")
    assert await asyncio.to_thread(var.get) == "carried"


async def test_debug_mode_refuses_a_coroutine_function() -> None:
    loop = asyncio.get_running_loop()

    async def coroutine() -> None:
        pass

    loop.set_debug(True)
    with pytest.raises(TypeError, match="coroutines cannot be used"):
        loop.run_in_executor(None, coroutine)
    with pytest.raises(TypeError, match="a callable object was expected"):
        loop.run_in_executor(None, 3)  # type: ignore[arg-type]


async def test_shutdown_waits_for_what_runs() -> None:
    loop = asyncio.get_running_loop()
    done: list[str] = []

    def work() -> None:
        time.sleep(0.05)
        done.append("work")

    loop.run_in_executor(None, work)
    await loop.shutdown_default_executor()
    assert done == ["work"]
    with pytest.raises(RuntimeError, match="Executor shutdown has been called"):
        loop.run_in_executor(None, print)


@pytest.mark.skipif(sys.version_info < (3, 13), reason="3.12 waits all the same")
async def test_shutdown_gives_up_at_its_time_limit() -> None:
    loop = asyncio.get_running_loop()
    release = threading.Event()
    loop.run_in_executor(None, release.wait, 5)
    with pytest.warns(RuntimeWarning, match="joining its threads within"):
        await loop.shutdown_default_executor(0.02)
    release.set()


async def test_addresses_are_looked_up() -> None:
    loop = asyncio.get_running_loop()
    for host, family in (("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6)):
        found = await loop.getaddrinfo(host, 80, type=socket.SOCK_STREAM)
        assert found == socket.getaddrinfo(host, 80, type=socket.SOCK_STREAM)
        assert found[0][0] == family
    found = await loop.getaddrinfo("localhost", None)
    assert found == socket.getaddrinfo("localhost", None)
    assert await loop.getnameinfo(
        ("127.0.0.1", 80), socket.NI_NUMERICHOST | socket.NI_NUMERICSERV
    ) == ("127.0.0.1", "80")
    with pytest.raises(socket.gaierror):
        await loop.getaddrinfo("127.0.0.1", "no-such-service-here")
