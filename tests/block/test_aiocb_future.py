"""The AIOCB as an awaitable, on loops that are not ours: stock asyncio and uvloop.

The context rides on the loop by `attach`.  The driver has no disk: each request is
completed by a bottom half, by a timer, or when the test says so.
"""

from __future__ import annotations

import asyncio
import contextvars
import errno
import gc
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from support.procs import run_script

import aioqemu
from aioqemu import EventNotifier
from aioqemu._loop.aiocontext import AioContext
from aioqemu.qemu_aio import (
    AIOPool,
    BlockDriverAIOCB,
    qemu_aio_flush,
    qemu_aio_get,
    qemu_aio_release,
    qemu_get_aio_context,
)

if TYPE_CHECKING:
    from support.pipes import Pipe

uvloop = pytest.importorskip("uvloop")
# Its first loop makes a pipe for signals that stays for good.
uvloop.new_event_loop().close()

Run = Callable[[Coroutine[Any, Any, Any]], Any]


class Driver:
    """Completes what it is given when told, from a bottom half or a timer."""

    def __init__(self, ctx: AioContext, *, cancels: bool = True) -> None:
        self.ctx = ctx
        self.asked: list[BlockDriverAIOCB] = []
        self.pool = AIOPool(self._cancel if cancels else None)
        self._timers: list[Any] = []

    def _cancel(self, acb: BlockDriverAIOCB) -> None:
        self.asked.append(acb)
        self._bottom_half(acb, -errno.ECANCELED)

    def _bottom_half(self, acb: BlockDriverAIOCB, ret: int) -> None:
        self.ctx.bh_new(lambda _: self._finish(acb, ret)).schedule()

    def _finish(self, acb: BlockDriverAIOCB, ret: int) -> None:
        if not acb.done():
            acb.complete(ret)
            qemu_aio_release(acb)

    def hang(self, cb: Any = None, opaque: object = None) -> BlockDriverAIOCB:
        """Start a request that nobody completes by itself."""
        return qemu_aio_get(self.pool, self, cb, opaque)

    def soon(self, ret: int, cb: Any = None) -> BlockDriverAIOCB:
        """Start one that a bottom half completes and releases."""
        acb = self.hang(cb)
        self._bottom_half(acb, ret)
        return acb

    def after(self, delay_s: float, ret: int, cb: Any = None) -> BlockDriverAIOCB:
        """Start one that a timer of the context completes and releases."""
        acb = self.hang(cb)
        self._timers.append(self.ctx.timer_new(lambda _: self._finish(acb, ret)))
        self._timers[-1].mod(time.monotonic_ns() + int(delay_s * 1e9))
        return acb


@pytest.fixture
def own(fdmon: str) -> Iterator[AioContext]:
    """A standalone context on the backend under test."""
    made = AioContext(fdmon=fdmon)
    yield made
    made.close()


@pytest.fixture(params=["asyncio", "uvloop"])
def stranger(request: pytest.FixtureRequest) -> Iterator[asyncio.AbstractEventLoop]:
    """A loop that is not ours."""
    make = asyncio.SelectorEventLoop if request.param == "asyncio" else None
    made: asyncio.AbstractEventLoop = make() if make else uvloop.new_event_loop()
    yield made
    made.close()


@pytest.fixture
def run(own: AioContext, stranger: asyncio.AbstractEventLoop) -> Iterator[Run]:
    """Run a coroutine on the foreign loop, which serves the context."""
    attachment = own.attach(stranger)

    def start(coro: Coroutine[Any, Any, Any]) -> Any:
        return stranger.run_until_complete(asyncio.wait_for(coro, 20))

    yield start
    attachment.detach()


@pytest.fixture
def driver(own: AioContext) -> Driver:
    """The driver on that context."""
    return Driver(own)


# -- the protocol ---------------------------------------------------------------------


def test_it_is_a_future(run: Run, driver: Driver) -> None:
    async def main() -> None:
        acb = driver.soon(3)
        assert asyncio.isfuture(acb)
        assert asyncio.ensure_future(acb) is acb
        assert acb.get_loop() is asyncio.get_running_loop()
        assert (acb.done(), acb.cancelled(), acb.ret) == (False, False, None)
        with pytest.raises(asyncio.InvalidStateError):
            acb.result()
        with pytest.raises(asyncio.InvalidStateError):
            acb.exception()
        assert await acb == 3
        assert (acb.done(), acb.cancelled(), acb.ret) == (True, False, 3)
        assert acb.result() == 3
        assert acb.exception() is None
        assert await acb == 3, "a second time, at once"

    run(main())


def test_errors_are_oserrors(run: Run, driver: Driver) -> None:
    async def main() -> None:
        with pytest.raises(PermissionError) as caught:
            await driver.soon(-errno.EPERM)
        assert caught.value.errno == errno.EPERM
        acb = driver.soon(-errno.EIO)
        await asyncio.wait([acb])
        assert isinstance(acb.exception(), OSError)
        assert acb.ret == -errno.EIO
        # Ended by its driver without anybody's cancel(): an error like any other.
        with pytest.raises(OSError, match="ancel"):
            await driver.soon(-errno.ECANCELED)

    run(main())


def test_gather(run: Run, driver: Driver) -> None:
    async def main() -> None:
        acbs = [driver.after(0.001 * (i % 3), i) for i in range(20)]
        assert await asyncio.gather(*acbs) == list(range(20))
        got = await asyncio.gather(
            driver.soon(1), driver.soon(-errno.ENOENT), return_exceptions=True
        )
        assert got[0] == 1
        assert isinstance(got[1], FileNotFoundError)
        with pytest.raises(FileNotFoundError):
            await asyncio.gather(driver.after(0.01, 1), driver.soon(-errno.ENOENT))

    run(main())


def test_cancelling_a_gather_waits_for_all(run: Run, driver: Driver) -> None:
    async def main() -> None:
        done: list[int] = []
        acbs = [driver.hang(lambda _, ret: done.append(ret)) for _ in range(3)]
        gathered = asyncio.gather(*acbs)
        await asyncio.sleep(0)
        gathered.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gathered
        assert done == [-errno.ECANCELED] * 3
        assert driver.asked == acbs

    run(main())


def test_wait_and_as_completed(run: Run, driver: Driver) -> None:
    async def main() -> None:
        slow, fast = driver.after(0.05, 1), driver.after(0.001, 2)
        done, pending = await asyncio.wait(
            [slow, fast], return_when=asyncio.FIRST_COMPLETED
        )
        assert (done, pending) == ({fast}, {slow})
        done, pending = await asyncio.wait([slow], timeout=0)
        assert (done, pending) == (set(), {slow})
        assert await slow == 1
        acbs = [driver.after(0.03, 1), driver.after(0.001, 2), driver.after(0.015, 3)]
        order = [await earliest for earliest in asyncio.as_completed(acbs)]
        assert order == [2, 3, 1]

    run(main())


def test_wait_for(run: Run, driver: Driver) -> None:
    async def main() -> None:
        done: list[int] = []
        assert await asyncio.wait_for(driver.after(0.001, 5), 5) == 5
        for timeout_s in (0.01, 0):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(
                    driver.hang(lambda _, ret: done.append(ret)), timeout_s
                )
        # Not before the completion.
        assert done == [-errno.ECANCELED] * 2

    run(main())


def test_timeout_and_task_group(run: Run, driver: Driver) -> None:
    async def fails() -> None:
        await driver.after(0.005, -errno.EIO)

    async def hangs() -> None:
        await driver.hang()

    async def both() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(hangs())
            group.create_task(fails())

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await driver.hang()
        with pytest.raises(ExceptionGroup):
            await both()
        assert len(driver.asked) == 2

    run(main())


def test_shield(run: Run, driver: Driver) -> None:
    async def main() -> None:
        acb = driver.after(0.02, 7)

        async def waits() -> int:
            return await asyncio.shield(acb)

        task = asyncio.ensure_future(waits())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (acb.done(), driver.asked) == (False, [])
        assert await acb == 7

    run(main())


def test_many_awaiters(run: Run, driver: Driver) -> None:
    async def main() -> None:
        acb = driver.after(0.005, 4)

        async def waits() -> int:
            return await acb

        assert await asyncio.gather(*(waits() for _ in range(5))) == [4] * 5

    run(main())


def test_done_callbacks(run: Run, driver: Driver) -> None:
    async def main() -> None:
        seen: list[object] = []
        value: contextvars.ContextVar[str] = contextvars.ContextVar("value")
        value.set("here")
        acb = driver.soon(1, lambda _, ret: seen.append("cb"))

        def first(future: object) -> None:
            seen.append((future is acb, value.get()))

        def other(future: object) -> None:
            seen.append("other")

        acb.add_done_callback(first)
        acb.add_done_callback(other)
        acb.add_done_callback(other)
        assert acb.remove_done_callback(other) == 2
        assert acb.remove_done_callback(other) == 0
        elsewhere = contextvars.copy_context()
        elsewhere.run(value.set, "there")
        acb.add_done_callback(first, context=elsewhere)
        await acb
        assert seen == ["cb", (True, "here"), (True, "there")]
        acb.add_done_callback(other)
        assert seen[-1] != "other", "never called inside"
        await asyncio.sleep(0)
        assert seen[-1] == "other"

    run(main())


def test_the_first_of_several_callbacks_is_removed(run: Run, driver: Driver) -> None:
    async def main() -> None:
        seen: list[int] = []
        acb = driver.soon(1)
        callbacks = [lambda _, i=i: seen.append(i) for i in range(4)]
        for callback in callbacks:
            acb.add_done_callback(callback)
        assert acb.remove_done_callback(callbacks[0]) == 1
        assert acb.remove_done_callback(callbacks[2]) == 1
        await acb
        await asyncio.sleep(0)
        assert seen == [1, 3]

    run(main())


def test_another_loop_may_not_await_it(run: Run, driver: Driver) -> None:
    async def main() -> BlockDriverAIOCB:
        acb = driver.hang()
        acb.get_loop()
        return acb

    acb = run(main())

    async def elsewhere() -> None:
        with pytest.raises(RuntimeError, match="different loop"):
            await acb

    asyncio.run(elsewhere())
    qemu_aio_release(acb)


def test_without_a_loop_there_is_no_future(own: AioContext) -> None:
    acb = Driver(own).hang()
    with pytest.raises(RuntimeError, match="no running event loop"):
        acb.get_loop()
    with pytest.raises(RuntimeError, match="no running event loop"):
        acb.__await__().__next__()
    acb.complete(0)


def test_run_until_complete_takes_it(
    run: Run, driver: Driver, stranger: asyncio.AbstractEventLoop
) -> None:
    # The context knows the loop that it rides on.
    assert stranger.run_until_complete(driver.after(0.001, 6)) == 6


def test_it_is_no_coroutine_and_iterates_like_a_future(
    run: Run, driver: Driver
) -> None:
    async def main() -> None:
        acb = driver.hang()
        waiting = acb.__await__()
        assert next(waiting) is acb
        assert acb._asyncio_future_blocking is True
        with pytest.raises(RuntimeError, match="wasn't used with future"):
            next(waiting)
        acb._asyncio_future_blocking = False
        acb.complete(9)
        with pytest.raises(StopIteration) as stop:
            next(waiting)
        assert stop.value.value == 9

    run(main())


def test_what_ends_an_await_belongs_to_who_caught_it(run: Run, driver: Driver) -> None:
    def ended(ret: int) -> StopIteration:
        acb = driver.hang()
        acb.complete(ret)
        try:
            next(acb.__await__())
        except StopIteration as stop:
            return stop.with_traceback(None)
        raise AssertionError("it was not over")

    async def main() -> None:
        first, second = ended(1), ended(2)
        acb = driver.hang()
        acb.complete(3)
        assert await acb == 3
        assert [(e.value, e.args) for e in (first, second)] == [(1, (1,)), (2, (2,))]
        # However the last one was left behind, the next await is right.
        for spoil in (
            lambda e: setattr(e, "args", ()),
            lambda e: setattr(e, "args", ("text",)),
            lambda e: setattr(e, "value", "text"),
            lambda e: delattr(e, "value"),
            lambda e: setattr(e, "__cause__", ValueError()),
            lambda e: setattr(e, "own", 1),
        ):
            spoil(ended(4))
            last = ended(5)
            assert (last.value, last.args, last.__cause__) == (5, (5,), None)
            assert not vars(last)
            del last
            acb = driver.hang()
            acb.complete(6)
            assert await acb == 6

    run(main())


# -- cancelling -----------------------------------------------------------------------


def test_cancelling_the_task_lets_it_out_after_the_completion(
    run: Run, own: AioContext
) -> None:
    async def main() -> None:
        events: list[object] = []
        driver = Driver(own, cancels=False)
        acb = driver.after(0.03, 5, lambda _, ret: events.append(ret))

        async def waits() -> None:
            try:
                await acb
            except asyncio.CancelledError as exc:
                events.append(exc.args)
                raise

        task = asyncio.ensure_future(waits())
        await asyncio.sleep(0)
        task.cancel("enough")
        await asyncio.sleep(0.005)
        assert not task.done(), "the buffer still belongs to the request"
        with pytest.raises(asyncio.CancelledError):
            await task
        assert events == [5, ("enough",)]
        assert acb.cancelled()
        assert acb.ret == 5, "the true result is still to be had"

    run(main())


def test_cancel_in_a_task_asks_and_returns(run: Run, driver: Driver) -> None:
    async def main() -> None:
        acb = driver.hang()
        assert acb.cancel() is True
        assert acb.done() is False
        with pytest.raises(asyncio.CancelledError):
            await acb
        assert driver.asked == [acb]
        assert acb.cancel() is False

    run(main())


def test_cancel_async_gives_awaiters_an_oserror(run: Run, driver: Driver) -> None:
    async def main() -> None:
        acb = driver.hang()
        acb.cancel_async()
        acb.cancel_async()
        with pytest.raises(OSError, match="ancel"):
            await acb
        assert len(driver.asked) == 1

    run(main())


def test_cancel_in_a_plain_callback_waits_unless_awaited(
    run: Run, driver: Driver
) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        done: list[int] = []
        alone = driver.hang(lambda _, ret: done.append(ret))
        result = loop.create_future()

        def plain() -> None:
            result.set_result((alone.cancel(), list(done)))

        loop.call_soon(plain)
        assert await result == (True, [-errno.ECANCELED])

        awaited = driver.hang()
        loop.call_soon(lambda: done.append(awaited.cancel() and not awaited.done()))
        with pytest.raises(asyncio.CancelledError):
            await awaited
        assert done[-1] is True

    run(main())


def test_pool_cancel_is_qemus(run: Run, driver: Driver) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        acb = driver.hang()
        loop.call_soon(driver.pool.cancel, acb)
        with pytest.raises(OSError, match="ancel"):
            await acb
        other = driver.hang()
        with pytest.raises(RuntimeError, match="flushed"):
            driver.pool.cancel(other)
        with pytest.raises(OSError, match="ancel"):
            await other

    run(main())


def test_cancel_without_a_loop_waits(own: AioContext, driver: Driver) -> None:
    done: list[int] = []
    acb = driver.after(0.01, 8, lambda _, ret: done.append(ret))
    driver.pool = AIOPool()
    assert acb.cancel() is True
    assert done == [-errno.ECANCELED]
    acb = Driver(own, cancels=False).after(0.01, 8, lambda _, ret: done.append(ret))
    assert acb.cancel() is False
    assert done == [-errno.ECANCELED, 8]


def test_cancelling_from_another_thread_is_refused(
    own: AioContext, driver: Driver
) -> None:
    own.poll(False)
    acb = driver.hang()
    refused: list[BaseException] = []

    def other() -> None:
        for use in (acb.cancel, acb.cancel_async):
            try:
                use()
            except RuntimeError as exc:
                refused.append(exc)

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert len(refused) == 2
    assert driver.asked == []
    acb.complete(0)


def test_a_driver_that_completes_inside_its_cancel(own: AioContext) -> None:
    done: list[int] = []
    pool = AIOPool(lambda acb: acb.complete(-errno.ECANCELED))
    acb = qemu_aio_get(pool, own, lambda _, ret: done.append(ret), None)
    own.notify()
    own.poll(False)
    acb.cancel_async()
    assert done == []
    own.flush()
    assert done == [-errno.ECANCELED]


def test_a_driver_whose_cancel_raises(own: AioContext) -> None:
    told: list[dict[str, Any]] = []
    own.set_exception_handler(told.append)

    def bad(acb: BlockDriverAIOCB) -> None:
        raise ValueError("bad driver")

    acb = qemu_aio_get(AIOPool(bad), own, None, None)
    acb.cancel_async()
    assert [str(context["exception"]) for context in told] == ["bad driver"]
    acb.complete(0)


# -- completion, release, busy --------------------------------------------------------


def test_complete_from_another_thread(run: Run, own: AioContext) -> None:
    async def main() -> None:
        ran_in: list[int] = []
        for cb in (None, lambda _, ret: ran_in.append(threading.get_ident())):
            acb = qemu_aio_get(AIOPool(), own, cb, None)
            threading.Timer(0.01, acb.complete, [2]).start()
            assert await acb == 2
        assert ran_in == [threading.get_ident()]

    run(main())


def test_a_flush_waits_for_a_thread(own: AioContext) -> None:
    done: list[int] = []
    for cb in (None, lambda _, ret: done.append(ret)):
        acb = qemu_aio_get(AIOPool(), own, cb, None)
        timer = threading.Timer(0.02, acb.complete, [2])
        timer.start()
        own.flush()
        assert acb.done()
        timer.join()
    assert done == [2]


def test_a_flush_inside_the_callback_does_not_wait_for_itself(
    own: AioContext, driver: Driver
) -> None:
    seen: list[object] = []

    def cb(_: object, ret: int) -> None:
        seen.append(own.busy)
        own.flush()
        seen.append(ret)

    driver.soon(1, cb)
    own.flush()
    assert seen == [False, 1]


def test_a_lost_request_does_not_keep_the_context_busy(own: AioContext) -> None:
    acb = qemu_aio_get(AIOPool(), own, None, None)
    assert own.busy
    del acb
    gc.collect()
    assert not own.busy
    own.flush()


def test_release_without_completion_ends_the_wait(run: Run, own: AioContext) -> None:
    async def main() -> None:
        called: list[int] = []
        acb = qemu_aio_get(AIOPool(), own, lambda _, ret: called.append(ret), None)
        asyncio.get_running_loop().call_soon(qemu_aio_release, acb)
        with pytest.raises(asyncio.CancelledError):
            await acb
        assert called == []
        assert not own.busy

    run(main())


def test_release_inside_the_callback(own: AioContext, driver: Driver) -> None:
    got: list[BlockDriverAIOCB] = []
    pool = AIOPool()

    def cb(acb_box: list[BlockDriverAIOCB], ret: int) -> None:
        qemu_aio_release(acb_box[0])
        got.append(qemu_aio_get(pool, own, None, None))

    box: list[BlockDriverAIOCB] = []
    box.append(qemu_aio_get(pool, own, cb, box))
    own.bh_new(lambda _: box[0].complete(0)).schedule()
    own.poll(False)
    assert got == box, "released, and so handed out again"
    assert got[0].done() is False
    assert own.busy
    got[0].complete(0)


def test_the_free_list_is_lifo() -> None:
    pool = AIOPool()
    acbs = [qemu_aio_get(pool, None, None, None) for _ in range(3)]
    for acb in acbs:
        acb.complete(0)
        qemu_aio_release(acb)
    again = [qemu_aio_get(pool, None, None, None) for _ in range(3)]
    assert again == acbs[::-1]
    for acb in again:
        acb.complete(0)


def test_what_is_awaited_serves_again_only_when_nobody_holds_it(
    run: Run, driver: Driver
) -> None:
    async def main() -> None:
        acb = driver.soon(5)
        assert await acb == 5
        other = driver.soon(6)
        assert other is not acb
        assert await other == 6
        assert (await acb, acb.ret) == (5, 5)
        was = id(other)
        del other
        await asyncio.sleep(0)  # the handle that resumed us holds it too
        anew = driver.hang()
        assert id(anew) == was
        assert (anew.done(), anew.ret) == (False, None)
        anew.complete(0)

    run(main())


def test_subclasses_start_afresh(own: AioContext) -> None:
    class Mine(BlockDriverAIOCB):
        __slots__ = ("__dict__", "buffer", "iov")

        def __init__(self) -> None:
            self.iov = ["fresh"]

    pool = AIOPool(None, Mine)
    acb = qemu_aio_get(pool, own, None, None)
    assert isinstance(acb, Mine)
    acb.buffer = b"secret"
    acb.note = 1  # type: ignore[attr-defined]
    acb.iov.append("used")
    acb.complete(0)
    qemu_aio_release(acb)
    again = qemu_aio_get(pool, own, None, None)
    assert again is acb
    assert again.iov == ["fresh"]
    assert not hasattr(again, "buffer")
    assert not hasattr(again, "note")
    again.complete(0)


def test_requests_of_the_main_context_wait_for_it_to_exist() -> None:
    done: list[int] = []
    acb = qemu_aio_get(AIOPool(), object(), lambda _, ret: done.append(ret), None)
    lost = qemu_aio_get(AIOPool(), None, None, None)
    lost.complete(0)
    main = qemu_get_aio_context()
    try:
        assert main.busy
        bh = main.bh_new(lambda _: acb.complete(3))
        timer = threading.Timer(0.02, bh.schedule)
        timer.start()
        qemu_aio_flush()
        timer.join()
        assert done == [3]
        assert not main.busy
    finally:
        main.close()


def test_a_request_cannot_be_made_by_hand() -> None:
    acb = BlockDriverAIOCB()
    assert acb.pool is None
    for use in (lambda: acb.complete(0), acb.cancel, acb.cancel_async):
        with pytest.raises(RuntimeError):
            use()
    with pytest.raises(RuntimeError):
        qemu_aio_release(acb)


# -- the context on a foreign loop ----------------------------------------------------


def test_fds_notifiers_bottom_halves_and_timers_ride_on_the_loop(
    run: Run, own: AioContext, make_pipe: Callable[[], Pipe]
) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        ran: list[str] = []
        pipe, notifier = make_pipe(), EventNotifier()
        finished = loop.create_future()

        def note(what: str) -> None:
            ran.append(what)
            if len(ran) == 5:
                finished.set_result(None)

        def io_read(_: object) -> None:
            pipe.drain()
            note("fd")

        def event(e: EventNotifier) -> None:
            e.test_and_clear()
            note("event")

        own.set_fd_handler(pipe.r, io_read, None)
        own.set_event_notifier(notifier, event)
        own.bh_new(note, "bh").schedule()
        own.bh_new(note, "idle").schedule_idle()
        deadline_ns = time.monotonic_ns() + 20_000_000
        own.timer_new(note, "timer").mod(deadline_ns)
        pipe.feed()
        thread = threading.Timer(0.005, notifier.set)
        thread.start()
        await finished
        thread.join()
        assert sorted(ran) == ["bh", "event", "fd", "idle", "timer"]
        assert time.monotonic_ns() >= deadline_ns, "a timer is never early"
        own.set_fd_handler(pipe.r, None, None)
        own.set_event_notifier(notifier, None)
        notifier.close()

    run(main())


def test_an_attached_context_that_has_nothing_to_do_is_quiet(
    run: Run, own: AioContext
) -> None:
    async def main() -> None:
        await own.flushed()
        await asyncio.sleep(0.01)
        before = own.stats()["passes"]
        await asyncio.sleep(0.05)
        assert own.stats()["passes"] - before <= 1

    run(main())


def test_poll_inside_a_task_names_flushed(run: Run, own: AioContext) -> None:
    async def main() -> None:
        for use in (own.flush, own.poll, own.dispatch):
            with pytest.raises(RuntimeError, match=r"await ctx\.flushed"):
                use()
        other = AioContext()
        assert other.poll(False) is False, "of another context it works anywhere"
        other.close()

    run(main())


def test_flushed(run: Run, own: AioContext, driver: Driver) -> None:
    async def main() -> None:
        done: list[int] = []
        for i in range(5):
            driver.after(0.005 * i, i, lambda _, ret: done.append(ret))
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.001)
                ticks += 1

        ticker = asyncio.ensure_future(tick())
        before = own.stats()["passes"]
        await asyncio.gather(own.flushed(), own.flushed())
        ticker.cancel()
        assert done == [0, 1, 2, 3, 4]
        assert ticks >= 2, "the loop went on"
        assert own.stats()["passes"] - before < 200, "it does not spin"
        await own.flushed()

    run(main())


def test_flushed_follows_chains_of_bottom_halves(run: Run, own: AioContext) -> None:
    async def main() -> None:
        left = 5

        def again(_: object) -> None:
            nonlocal left
            left -= 1
            if left:
                bh.schedule()

        bh = own.bh_new(again)
        bh.schedule()
        await own.flushed()
        assert left == 0

    run(main())


def test_flushed_without_attach(own: AioContext) -> None:
    async def main() -> None:
        driver, done = Driver(own), []
        driver.after(0.01, 1, lambda _, ret: done.append(ret))
        await asyncio.gather(own.flushed(), own.flushed())
        assert done == [1]
        assert own.loop is None, "attached for the time being only"
        acb = driver.hang()
        task = asyncio.ensure_future(own.flushed())
        await asyncio.sleep(0.02)
        assert own.loop is asyncio.get_running_loop()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert own.loop is None
        acb.complete(0)

    asyncio.run(main())


def test_flushed_of_a_context_that_closes(run: Run, own: AioContext) -> None:
    async def main() -> None:
        Driver(own).hang(print)
        task = asyncio.ensure_future(own.flushed())
        await asyncio.sleep(0)
        own.close()
        with pytest.raises(RuntimeError, match="closed"):
            await task

    run(main())


def test_attach_is_checked(own: AioContext) -> None:
    loop, other = asyncio.SelectorEventLoop(), asyncio.SelectorEventLoop()
    with pytest.raises(TypeError):
        own.attach("loop")  # type: ignore[arg-type]
    with own.attach(loop) as attachment:
        assert own.loop is loop
        with pytest.raises(RuntimeError, match="already"):
            own.attach(other)
    assert own.loop is None
    attachment.detach()
    again = own.attach(other)
    own.close()
    assert repr(again) == "<Attachment detached>"
    with pytest.raises(RuntimeError, match="closed"):
        own.attach(loop)
    loop.close()
    other.close()


def test_a_loop_that_closes_first(own: AioContext) -> None:
    loop = asyncio.SelectorEventLoop()
    attachment = own.attach(loop)
    loop.close()
    attachment.detach()
    assert own.poll(False) is False


def test_a_context_moves_from_loop_to_loop(own: AioContext) -> None:
    driver = Driver(own)

    async def main() -> int:
        with own.attach(asyncio.get_running_loop()):
            return await driver.after(0.001, 2)

    for _ in range(3):
        assert asyncio.run(main()) == 2
    uvloop.run(main())


# -- the context of our own loop -------------------------------------------------------


def test_flushed_on_our_loop_does_not_spin(fdmon: str) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        ctx = loop.context  # type: ignore[attr-defined]
        assert ctx.loop is loop
        acb = qemu_aio_get(AIOPool(), loop, None, None)
        before = ctx.stats()["passes"]
        started = time.monotonic()
        loop.call_later(0.1, acb.complete, 3)
        await ctx.flushed()
        assert time.monotonic() - started >= 0.1
        assert ctx.stats()["passes"] - before < 60
        assert await acb == 3

    aioqemu.run(main(), fdmon=fdmon)


def test_the_main_context_is_forgotten_in_a_forked_child() -> None:
    out = run_script(
        """
        import os
        from aioqemu.qemu_aio import qemu_get_aio_context

        main = qemu_get_aio_context()
        pid = os.fork()
        if pid == 0:
            assert qemu_get_aio_context() is not main
            assert qemu_get_aio_context().poll(False) is False
            raise SystemExit
        assert os.waitpid(pid, 0)[1] == 0
        assert main.closed is False
        bh = main.bh_new(print, "parent")
        bh.schedule()
        assert main.poll(True) is True
        """
    )
    assert out.strip() == "parent"
