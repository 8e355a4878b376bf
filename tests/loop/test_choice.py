"""Rules of choosing the loop: functions, options, the environment, the main context.

The three modules test_choice_policy, test_choice_runner and test_choice_run go
through whole programs in each of the three ways.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import warnings
from typing import Any

import pytest
from support.procs import run_script

import aioqemu
from aioqemu import qemu_aio


def test_new_event_loop_makes_our_loop(fdmon: str) -> None:
    loop = aioqemu.new_event_loop(fdmon=fdmon)
    try:
        assert type(loop) is aioqemu.EventLoop
        assert aioqemu.Loop is aioqemu.EventLoop
        assert isinstance(loop, asyncio.AbstractEventLoop)
        assert loop.fdmon == fdmon
    finally:
        loop.close()


def test_the_loop_can_be_subclassed(fdmon: str) -> None:
    class Mine(aioqemu.EventLoop):
        calls = 0

        def call_soon(self, callback: Any, *args: Any, context: Any = None) -> Any:
            type(self).calls += 1
            return super().call_soon(callback, *args, context=context)

    loop = Mine(fdmon=fdmon)
    try:
        assert loop.run_until_complete(asyncio.sleep(0.001, "done")) == "done"
        assert Mine.calls > 0
        loop.anything = "has a dictionary"
    finally:
        loop.close()


def test_run_returns_the_result(fdmon: str) -> None:
    async def main() -> str:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, aioqemu.EventLoop)
        assert loop.fdmon == fdmon
        return "result"

    assert aioqemu.run(main(), fdmon=fdmon) == "result"


def test_run_takes_debug(fdmon: str) -> None:
    async def main() -> bool:
        return asyncio.get_running_loop().get_debug()

    assert aioqemu.run(main(), debug=True, fdmon=fdmon) is True
    assert aioqemu.run(main(), debug=False, fdmon=fdmon) is False


def test_run_cleans_up_as_asyncio_run_does(fdmon: str) -> None:
    cancelled: list[str] = []

    async def left_behind() -> None:
        try:
            await asyncio.sleep(100)
        finally:
            cancelled.append("task")

    async def main() -> asyncio.AbstractEventLoop:
        loop = asyncio.get_running_loop()
        loop.task = asyncio.create_task(left_behind())  # type: ignore[attr-defined]
        await asyncio.sleep(0)
        return loop

    assert aioqemu.run(main(), fdmon=fdmon).is_closed()
    assert cancelled == ["task"]


def test_run_within_a_running_loop_is_refused(fdmon: str) -> None:
    async def inner() -> None:
        pass

    async def main() -> None:
        coroutine = inner()
        try:
            with pytest.raises(RuntimeError, match="running event loop"):
                aioqemu.run(coroutine)
        finally:
            coroutine.close()

    aioqemu.run(main(), fdmon=fdmon)


def test_run_wants_a_coroutine() -> None:
    with pytest.raises((TypeError, ValueError), match="coroutine"):
        aioqemu.run(lambda: None)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["", "select", "EPOLL", "kqueue"])
def test_an_unknown_backend_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="fdmon"):
        aioqemu.new_event_loop(fdmon=name)


@pytest.mark.parametrize("fdmon_option", [5, b"poll", object()])
def test_a_backend_that_is_no_name_is_refused(fdmon_option: Any) -> None:
    with pytest.raises(TypeError):
        aioqemu.new_event_loop(fdmon=fdmon_option)


def test_auto_chooses_a_backend_that_works() -> None:
    loop = aioqemu.new_event_loop(fdmon="auto")
    try:
        assert loop.fdmon in ("poll", "epoll", "io_uring")
        assert loop.run_until_complete(asyncio.sleep(0, 1)) == 1
    finally:
        loop.close()


@pytest.mark.parametrize(
    "option",
    [
        {"poll_max_ns": -1},
        {"poll_grow": -1},
        {"poll_shrink": -1},
        {"hold_gil_ns": -1},
        {"poll_max_ns": "1"},
        {"nothing": 1},
    ],
    ids=str,
)
def test_bad_options_are_refused(option: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError, OverflowError)):
        aioqemu.new_event_loop(**option)


def test_adaptive_polling_serves_the_same_programs(fdmon: str) -> None:
    async def main() -> None:
        server = await asyncio.start_server(
            lambda _reader, writer: writer.close(), "127.0.0.1", 0
        )
        port = server.sockets[0].getsockname()[1]
        for _ in range(10):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            assert await reader.read() == b""
            writer.close()
            await writer.wait_closed()
            await asyncio.sleep(0.001)
        server.close()
        await server.wait_closed()

    aioqemu.run(main(), fdmon=fdmon, poll_max_ns=100_000, poll_grow=2, poll_shrink=2)


def test_the_environment_chooses(fdmon: str) -> None:
    script = "import aioqemu; loop = aioqemu.new_event_loop(); print(loop.fdmon);"
    out = run_script(script + "loop.close()", env={"AIOQEMU_FDMON": fdmon})
    assert out == f"{fdmon}\n"


def test_an_explicit_choice_beats_the_environment(fdmon: str) -> None:
    other = "poll" if fdmon != "poll" else "epoll"
    script = (
        "import aioqemu\n"
        f"loop = aioqemu.new_event_loop(fdmon={fdmon!r})\n"
        "print(loop.fdmon)\n"
        "loop.close()"
    )
    assert run_script(script, env={"AIOQEMU_FDMON": other}) == f"{fdmon}\n"


def test_nonsense_in_the_environment_is_told() -> None:
    script = """
    import aioqemu
    try:
        aioqemu.new_event_loop()
    except ValueError as error:
        print(error)
    """
    assert "nonsense" in run_script(script, env={"AIOQEMU_FDMON": "nonsense"})


def test_importing_warns_of_nothing() -> None:
    script = """
    import warnings
    warnings.simplefilter("error")
    import aioqemu
    from aioqemu import *
    """
    assert run_script(script) == ""


def test_install_makes_ours_the_default() -> None:
    script = """
    import asyncio, warnings
    import aioqemu
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        aioqemu.install()
        loop = asyncio.new_event_loop()
    assert isinstance(loop, aioqemu.EventLoop)
    loop.close()
    async def main():
        return type(asyncio.get_running_loop()) is aioqemu.EventLoop
    print(asyncio.run(main()))
    """
    assert run_script(script) == "True\n"


def test_every_public_name_is_there() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        for name in aioqemu.__all__:
            assert getattr(aioqemu, name) is not None
    assert set(aioqemu.__all__) <= set(dir(aioqemu))


def test_methods_have_the_stock_signatures(loop: Any) -> None:
    with contextlib.closing(asyncio.SelectorEventLoop()) as stock:
        expected_ones = {
            name: inspect.signature(getattr(stock, name))
            for name in dir(asyncio.AbstractEventLoop)
            if not name.startswith("_") and callable(getattr(stock, name))
        }
    different = []
    for name, expected in expected_ones.items():
        try:
            found = inspect.signature(getattr(loop, name))
        except ValueError:
            different.append(f"{name}: no signature")
            continue
        names = [(p.name, p.kind, p.default) for p in expected.parameters.values()]
        have = [(p.name, p.kind, p.default) for p in found.parameters.values()]
        if names != have:
            different.append(f"{name}: {found} instead of {expected}")
    assert different == []


class TestMainContext:
    """Who has the process's main context."""

    def test_the_first_loop_takes_it(self) -> None:
        run_script(
            """
            import aioqemu
            from aioqemu import qemu_aio
            main = qemu_aio.qemu_get_aio_context()
            loop = aioqemu.new_event_loop()
            assert loop.context is main
            second = aioqemu.new_event_loop()
            assert second.context is not main
            second.close()
            loop.close()
            """
        )

    def test_it_is_made_for_a_loop_that_comes_first(self) -> None:
        run_script(
            """
            import aioqemu
            from aioqemu import qemu_aio
            loop = aioqemu.new_event_loop()
            assert qemu_aio.qemu_get_aio_context() is loop.context
            loop.close()
            """
        )

    def test_it_closes_with_its_loop_and_is_made_anew(self) -> None:
        run_script(
            """
            import aioqemu
            from aioqemu import qemu_aio
            first = aioqemu.new_event_loop()
            old = first.context
            first.close()
            second = aioqemu.new_event_loop()
            assert second.context is not old
            assert qemu_aio.qemu_get_aio_context() is second.context
            second.close()
            third = qemu_aio.qemu_get_aio_context()
            assert third not in (old, second.context)
            qemu_aio.aio_context_unref(third)
            """
        )

    def test_a_loop_of_another_thread_does_not_take_it(self) -> None:
        run_script(
            """
            import threading
            import aioqemu
            from aioqemu import qemu_aio
            main = qemu_aio.qemu_get_aio_context()
            made = []
            thread = threading.Thread(
                target=lambda: made.append(aioqemu.new_event_loop())
            )
            thread.start(); thread.join()
            assert made[0].context is not main
            made[0].close()
            loop = aioqemu.new_event_loop()
            assert loop.context is main
            loop.close()
            """
        )

    def test_a_loop_on_another_backend_makes_its_own(self) -> None:
        run_script(
            """
            import aioqemu
            from aioqemu import qemu_aio
            main = qemu_aio.qemu_get_aio_context()
            loop = aioqemu.new_event_loop(fdmon="poll")
            assert loop.context is not main
            loop.close()
            same = aioqemu.new_event_loop(fdmon="epoll")
            assert same.context is main
            same.close()
            """,
            env={"AIOQEMU_FDMON": "epoll"},
        )

    def test_bottom_halves_of_the_main_context_run_in_its_loop(self) -> None:
        out = run_script(
            """
            import asyncio
            import aioqemu
            from aioqemu.qemu_aio import aio_bh_new, qemu_bh_schedule
            from aioqemu.qemu_aio import qemu_bh_delete, qemu_get_aio_context

            async def main():
                woken = asyncio.Event()
                half = aio_bh_new(qemu_get_aio_context(), lambda _: woken.set())
                qemu_bh_schedule(half)
                await asyncio.wait_for(woken.wait(), 5)
                qemu_bh_delete(half)
                print("ran")

            aioqemu.run(main())
            """
        )
        assert out == "ran\n"


def test_the_main_context_of_this_process_is_usable() -> None:
    loop = aioqemu.new_event_loop()
    try:
        seen: list[str] = []
        ctx = qemu_aio.qemu_get_aio_context()
        half = qemu_aio.aio_bh_new(ctx, seen.append, "ran")
        qemu_aio.qemu_bh_schedule(half)
        qemu_aio.aio_poll(ctx, False)
        qemu_aio.qemu_bh_delete(half)
        assert seen == ["ran"]
    finally:
        loop.close()
