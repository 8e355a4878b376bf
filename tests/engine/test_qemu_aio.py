"""`aioqemu.qemu_aio`: the names of qemu-aio.h, their contracts, the main context."""

from __future__ import annotations

import os
import socket
import threading
from typing import TYPE_CHECKING

import pytest
from support.pipes import Pipe
from support.procs import run_script
from support.qemu import EventData

import aioqemu
from aioqemu import AioContext, BottomHalf, EventNotifier, qemu_aio

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NAMES = """
    aio_context_new aio_context_ref aio_context_unref aio_bh_new aio_bh_poll aio_poll
    aio_pending aio_flush aio_notify aio_set_fd_handler aio_set_event_notifier
    aio_get_g_source qemu_bh_schedule qemu_bh_schedule_idle qemu_bh_cancel
    qemu_bh_delete qemu_aio_flush qemu_aio_wait qemu_aio_set_fd_handler
    qemu_aio_set_event_notifier qemu_get_aio_context AIOPool BlockDriverAIOCB
    qemu_aio_get qemu_aio_release EventNotifier event_notifier_init
    event_notifier_set event_notifier_test_and_clear event_notifier_get_fd
    event_notifier_cleanup
""".split()


@pytest.fixture
def main_ctx(fdmon: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[AioContext]:
    """The main context, made anew on the backend under test."""
    monkeypatch.setenv("AIOQEMU_FDMON", fdmon)
    context = qemu_aio.qemu_get_aio_context()
    assert context.fdmon == fdmon
    yield context
    context.close()


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_there_and_documented(name: str) -> None:
    found = getattr(qemu_aio, name)
    assert callable(found)
    assert found.__doc__
    assert name in qemu_aio.__all__


def test_context_references(ctx: AioContext) -> None:
    qemu_aio.aio_context_ref(ctx)
    assert ctx.refcount == 2
    qemu_aio.aio_context_unref(ctx)
    assert ctx.closed is False


def test_last_unref_closes() -> None:
    ctx = qemu_aio.aio_context_new()
    assert isinstance(ctx, AioContext)
    assert ctx.refcount == 1
    qemu_aio.aio_context_unref(ctx)
    assert ctx.closed is True
    with pytest.raises(RuntimeError):
        qemu_aio.aio_poll(ctx, False)


def test_bottom_halves(ctx: AioContext) -> None:
    ran: list[object] = []
    bh = qemu_aio.aio_bh_new(ctx, ran.append, "opaque")
    assert isinstance(bh, BottomHalf)
    assert qemu_aio.aio_bh_poll(ctx) is False
    qemu_aio.qemu_bh_schedule(bh)
    assert qemu_aio.aio_bh_poll(ctx) is True
    qemu_aio.qemu_bh_schedule_idle(bh)
    assert qemu_aio.aio_bh_poll(ctx) is False
    assert ran == ["opaque", "opaque"]
    qemu_aio.qemu_bh_schedule(bh)
    qemu_aio.qemu_bh_cancel(bh)
    assert qemu_aio.aio_poll(ctx, False) is False
    qemu_aio.qemu_bh_delete(bh)
    qemu_aio.qemu_bh_delete(bh)
    with pytest.raises(RuntimeError):
        qemu_aio.qemu_bh_schedule(bh)


def test_fd_handler_and_flush(ctx: AioContext) -> None:
    here, there = socket.socketpair()
    with here, there:
        here.setblocking(False)
        active, got = 3, []

        def io_read(opaque: object) -> None:
            nonlocal active
            got.append((opaque, here.recv(1)))
            active -= 1

        def io_flush(opaque: object) -> int:
            assert opaque == "o"
            return active

        there.send(b"abc")
        qemu_aio.aio_set_fd_handler(ctx, here.fileno(), io_read, None, io_flush, "o")
        qemu_aio.aio_flush(ctx)
        assert got == [("o", b"a"), ("o", b"b"), ("o", b"c")]
        assert qemu_aio.aio_pending(ctx) is False
        qemu_aio.aio_set_fd_handler(ctx, here.fileno(), None, None, None, None)
        there.send(b"d")
        assert qemu_aio.aio_poll(ctx, False) is False
        assert len(got) == 3


def test_g_source_names_pygobject_when_it_is_missing(ctx: AioContext) -> None:
    try:
        import gi  # noqa: F401
    except ImportError:
        with pytest.raises(ImportError, match="PyGObject"):
            qemu_aio.aio_get_g_source(ctx)
    else:
        pytest.skip("PyGObject is installed here")


def test_main_context_is_one(main_ctx: AioContext) -> None:
    assert qemu_aio.qemu_get_aio_context() is main_ctx
    seen: list[AioContext] = []
    thread = threading.Thread(
        target=lambda: seen.append(qemu_aio.qemu_get_aio_context())
    )
    thread.start()
    thread.join()
    assert seen == [main_ctx]


def test_main_context_is_made_lazily_by_one_of_many_threads(fdmon: str) -> None:
    out = run_script(
        """
        import os, sys, threading
        from aioqemu import qemu_aio

        barrier = threading.Barrier(8)
        seen = []

        def get():
            barrier.wait()
            seen.append(qemu_aio.qemu_get_aio_context())

        before = len(os.listdir("/proc/self/fd"))
        threads = [threading.Thread(target=get) for _ in range(8)]
        [t.start() for t in threads]
        [t.join() for t in threads]
        assert len(set(map(id, seen))) == 1, seen
        print(seen[0].fdmon)
        seen[0].close()
        assert len(os.listdir("/proc/self/fd")) == before
        """,
        env={"AIOQEMU_FDMON": fdmon},
    )
    assert out.strip() == fdmon


def test_functions_on_the_main_context(main_ctx: AioContext) -> None:
    data = EventData(active=2, auto_set=True)
    qemu_aio.qemu_aio_set_event_notifier(data.e, data.ready, data.flush)
    data.e.set()
    assert qemu_aio.qemu_aio_wait() is True
    qemu_aio.qemu_aio_flush()
    assert (data.n, data.active) == (2, 0)
    assert qemu_aio.qemu_aio_wait() is False
    qemu_aio.qemu_aio_set_event_notifier(data.e, None, None)
    data.close()
    pipe, got = Pipe(), []
    pipe.feed()
    qemu_aio.qemu_aio_set_fd_handler(
        pipe.r,
        lambda opaque: got.append((opaque, pipe.drain())),
        None,
        lambda _: not got,
        7,
    )
    qemu_aio.qemu_aio_flush()
    assert got == [(7, b"x")]
    qemu_aio.qemu_aio_set_fd_handler(pipe.r, None, None, None, None)
    pipe.close()
    assert main_ctx.poll(False) is False


def test_code_from_before_the_seed_waits_in_a_loop(main_ctx: AioContext) -> None:
    data = EventData(active=5, auto_set=True)
    qemu_aio.qemu_aio_set_event_notifier(data.e, data.ready, data.flush)
    data.e.set()
    while qemu_aio.qemu_aio_wait():
        pass
    assert data.n == 5
    qemu_aio.qemu_aio_set_event_notifier(data.e, None, None)
    data.close()
    assert main_ctx.closed is False


def test_a_loop_made_in_the_main_thread_adopts_the_main_context(
    main_ctx: AioContext,
) -> None:
    loop = aioqemu.new_event_loop()
    second = aioqemu.new_event_loop()
    assert loop.context is main_ctx
    assert second.context is not main_ctx
    second.close()
    assert main_ctx.closed is False
    loop.close()
    assert main_ctx.closed is True, "an adopted main context closes with its loop"
    anew = qemu_aio.qemu_get_aio_context()
    assert anew is not main_ctx
    assert anew.closed is False
    anew.close()


def test_the_main_context_is_the_loops_after_a_loop_was_made_first(
    fdmon: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIOQEMU_FDMON", fdmon)
    loop = aioqemu.new_event_loop()
    assert qemu_aio.qemu_get_aio_context() is loop.context
    ran: list[str] = []

    def io_read(notifier: EventNotifier) -> None:
        notifier.test_and_clear()
        ran.append("event")
        loop.stop()

    notifier = EventNotifier(active=True)
    qemu_aio.qemu_aio_set_event_notifier(notifier, io_read, lambda _: 0)
    loop.run_forever()
    # The loop's own pass watches what an io_flush of 0 hides from aio_poll.
    assert ran == ["event"]
    qemu_aio.qemu_aio_set_event_notifier(notifier, None, None)
    notifier.close()
    loop.close()


def test_a_loop_with_another_explicit_backend_makes_its_own_context(
    main_ctx: AioContext,
) -> None:
    other = "poll" if main_ctx.fdmon != "poll" else "epoll"
    loop = aioqemu.new_event_loop(fdmon=other)
    assert loop.context is not main_ctx
    assert loop.fdmon == other
    loop.close()
    assert main_ctx.closed is False


def test_a_loop_made_in_another_thread_does_not_adopt(main_ctx: AioContext) -> None:
    adopted: list[bool] = []

    def make() -> None:
        loop = aioqemu.new_event_loop()
        adopted.append(loop.context is main_ctx)
        loop.close()

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    assert adopted == [False]
    assert main_ctx.closed is False


def test_callbacks_and_coroutines_share_one_loop(
    fdmon: str, monkeypatch: pytest.MonkeyPatch, make_pipe: Callable[[], Pipe]
) -> None:
    monkeypatch.setenv("AIOQEMU_FDMON", fdmon)
    pipe = make_pipe()

    async def main() -> bytes:
        import asyncio

        loop = asyncio.get_running_loop()
        future: asyncio.Future[bytes] = loop.create_future()
        bh = qemu_aio.aio_bh_new(
            qemu_aio.qemu_get_aio_context(), future.set_result, b"from a bottom half"
        )
        qemu_aio.qemu_bh_schedule(bh)
        os.write(pipe.w, await future)
        return pipe.drain()

    assert aioqemu.run(main()) == b"from a bottom half"


@pytest.mark.parametrize(
    "name",
    [
        "aio_bh_poll",
        "aio_context_ref",
        "aio_context_unref",
        "aio_flush",
        "aio_notify",
        "aio_pending",
        "event_notifier_cleanup",
        "event_notifier_get_fd",
        "event_notifier_set",
        "event_notifier_test_and_clear",
        "qemu_aio_release",
        "qemu_bh_cancel",
        "qemu_bh_delete",
        "qemu_bh_schedule",
        "qemu_bh_schedule_idle",
    ],
)
@pytest.mark.parametrize("wrong", [None, 3, object()], ids=["None", "int", "object"])
def test_the_wrong_type_is_a_type_error(name: str, wrong: object) -> None:
    with pytest.raises(TypeError):
        getattr(qemu_aio, name)(wrong)
