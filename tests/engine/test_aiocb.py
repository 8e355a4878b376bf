"""AIOPool and BlockDriverAIOCB: the life of one request, on a bottom-half driver.

The driver does no I/O: a request is a bottom half that completes it. That shows
the whole life cycle of the seed header's AIOCB without a disk.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import os
from typing import TYPE_CHECKING, Any

import pytest

from aioqemu.qemu_aio import (
    AIOPool,
    BlockDriverAIOCB,
    qemu_aio_get,
    qemu_aio_release,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from aioqemu import AioContext, EventLoop


class BhAIOCB(BlockDriverAIOCB):
    """A request of the bottom-half driver, with a field of its own."""

    bh: Any = None
    ret: int = 0


class BhDriver:
    """Completes each request from a bottom half of its context."""

    def __init__(self, ctx: AioContext) -> None:
        self.ctx = ctx
        self.pool = AIOPool(self.cancel_request, BhAIOCB)
        self.cancelled: list[BlockDriverAIOCB] = []

    def cancel_request(self, acb: BlockDriverAIOCB) -> None:
        assert isinstance(acb, BhAIOCB)
        self.cancelled.append(acb)
        acb.ret = -errno.ECANCELED

    def submit(
        self,
        cb: Callable[[object, int], object] | None,
        opaque: object = None,
        ret: int = 0,
    ) -> BhAIOCB:
        acb = qemu_aio_get(self.pool, self, cb, opaque)
        assert isinstance(acb, BhAIOCB)
        acb.ret = ret
        acb.bh = self.ctx.bh_new(self._finish, acb)
        acb.bh.schedule()
        return acb

    def _finish(self, acb: BhAIOCB) -> None:
        acb.bh.delete()
        acb.complete(acb.ret)


Done = list[tuple[object, int]]


@pytest.fixture
def driver(ctx: AioContext) -> BhDriver:
    """A driver on a standalone context."""
    return BhDriver(ctx)


@pytest.fixture
def done() -> Done:
    """What the completion callbacks were called with."""
    return []


def collect(done: Done) -> Callable[[object, int], None]:
    """Return a completion callback that notes its arguments."""
    return lambda opaque, ret: done.append((opaque, ret))


def test_get_gives_what_it_was_given(driver: BhDriver, done: Done) -> None:
    cb, opaque = collect(done), object()
    acb = qemu_aio_get(driver.pool, driver, cb, opaque)
    assert type(acb) is BhAIOCB
    assert (acb.pool, acb.bs, acb.cb, acb.opaque) == (driver.pool, driver, cb, opaque)
    acb.complete(0)
    qemu_aio_release(acb)


def test_default_type() -> None:
    pool = AIOPool()
    acb = qemu_aio_get(pool, None, None, None)
    assert type(acb) is BlockDriverAIOCB
    assert acb.pool is pool
    acb.complete(0)
    qemu_aio_release(acb)


@pytest.mark.parametrize("kind", [int, object, "BlockDriverAIOCB", None])
def test_the_type_must_be_an_aiocb(kind: Any) -> None:
    with pytest.raises(TypeError):
        AIOPool(None, kind)


def test_cancel_must_be_callable() -> None:
    with pytest.raises(TypeError):
        AIOPool(3)  # type: ignore[arg-type]


def test_completes_once_from_the_loop_never_from_the_submission(
    ctx: AioContext, driver: BhDriver, done: Done
) -> None:
    driver.submit(collect(done), "opaque", 7)
    assert done == []
    assert ctx.poll(False) is True
    assert done == [("opaque", 7)]
    assert ctx.poll(False) is False
    assert done == [("opaque", 7)]


def test_completion_inside_the_submission_is_deferred(
    ctx: AioContext, done: Done
) -> None:
    # A driver that is done at once: its callback must still wait for the loop.
    pool = AIOPool()

    class Immediate:
        def __init__(self) -> None:
            self.ctx = ctx

        def submit(self) -> BlockDriverAIOCB:
            acb = qemu_aio_get(pool, self, collect(done), "now")
            acb.complete(0)
            return acb

    acb = Immediate().submit()
    assert done == [], "the callback ran before the submission returned"
    ctx.flush()
    assert done == [("now", 0)]
    assert acb is not None


def test_errors_are_negative_errnos(
    ctx: AioContext, driver: BhDriver, done: Done
) -> None:
    driver.submit(collect(done), 1, -errno.EIO)
    ctx.flush()
    assert done == [(1, -errno.EIO)]


def test_without_a_callback(ctx: AioContext, driver: BhDriver) -> None:
    acb = driver.submit(None)
    ctx.flush()
    assert acb is not None


def test_many_requests(ctx: AioContext, driver: BhDriver, done: Done) -> None:
    for number in range(100):
        driver.submit(collect(done), number, number)
    ctx.flush()
    assert done == [(number, number) for number in range(100)]


def test_requests_in_flight_make_the_context_busy(
    ctx: AioContext, done: Done, later: Callable[..., object]
) -> None:
    # The completion comes from elsewhere: the poll has to wait for it.
    class Bs:
        def __init__(self) -> None:
            self.ctx = ctx

    acb = qemu_aio_get(AIOPool(), Bs(), collect(done), "late")
    bh = ctx.bh_new(lambda _: acb.complete(3))
    later(0.05, bh.schedule)
    ctx.flush()
    assert done == [("late", 3)]
    assert ctx.poll(True) is False


def test_a_callback_may_submit_the_next(ctx: AioContext, driver: BhDriver) -> None:
    seen: list[BhAIOCB] = []

    def cb(left: object, ret: int) -> None:
        assert ret == 0
        assert isinstance(left, int)
        if left:
            seen.append(driver.submit(cb, left - 1))
            # QEMU's rule: the one that completes is not handed out again here.
            assert seen[-1] is not seen[-2]

    seen.append(driver.submit(cb, 20))
    ctx.flush()
    assert len(seen) == 21


def test_exception_of_a_callback_goes_to_the_handler(
    ctx: AioContext, driver: BhDriver, done: Done, errors: list[dict[str, Any]]
) -> None:
    def fails(_: object, ret: int) -> None:
        raise ValueError(ret)

    driver.submit(fails, None, 5)
    driver.submit(collect(done), "next")
    ctx.flush()
    assert [str(error["exception"]) for error in errors] == ["5"]
    assert done == [("next", 0)]


# Cancelling ------------------------------------------------------------------------


def test_cancel_returns_after_the_callback_has_run(
    ctx: AioContext, driver: BhDriver, done: Done
) -> None:
    acb = driver.submit(collect(done), "c")
    acb.cancel()
    assert driver.cancelled == [acb]
    assert done == [("c", -errno.ECANCELED)]
    assert ctx.poll(False) is False
    assert len(done) == 1


def test_cancel_async_asks_and_returns(
    ctx: AioContext, driver: BhDriver, done: Done
) -> None:
    acb = driver.submit(collect(done), "c")
    acb.cancel_async()
    assert done == []
    ctx.flush()
    assert done == [("c", -errno.ECANCELED)]


def test_cancelling_what_cannot_be_cancelled_waits_for_the_true_result(
    ctx: AioContext, done: Done
) -> None:
    driver = BhDriver(ctx)
    driver.pool = AIOPool(None, BhAIOCB)
    acb = driver.submit(collect(done), "c", 9)
    acb.cancel()
    assert done == [("c", 9)]


def test_cancelling_after_completion_does_nothing(
    ctx: AioContext, driver: BhDriver, done: Done
) -> None:
    acb = driver.submit(collect(done), "c")
    ctx.flush()
    acb.cancel()
    acb.cancel_async()
    ctx.flush()
    assert done == [("c", 0)]
    assert driver.cancelled == []


def test_completing_twice_raises(ctx: AioContext, done: Done) -> None:
    class Bs:
        def __init__(self) -> None:
            self.ctx = ctx

    acb = qemu_aio_get(AIOPool(), Bs(), collect(done), None)
    acb.complete(0)
    with pytest.raises(RuntimeError):
        acb.complete(0)
    ctx.flush()
    assert done == [(None, 0)]


# Releasing and recycling -----------------------------------------------------------


def test_releasing_twice_raises() -> None:
    pool = AIOPool()
    acb = qemu_aio_get(pool, None, None, None)
    acb.complete(0)
    qemu_aio_release(acb)
    with pytest.raises(RuntimeError):
        qemu_aio_release(acb)
    # A double release in C hands one object to two requests.
    first = qemu_aio_get(pool, None, None, None)
    second = qemu_aio_get(pool, None, None, None)
    assert first is not second
    for acb in (first, second):
        acb.complete(0)
        qemu_aio_release(acb)


def test_using_a_released_one_raises() -> None:
    acb = qemu_aio_get(AIOPool(), None, None, None)
    acb.complete(0)
    qemu_aio_release(acb)
    for use in (lambda: acb.complete(0), acb.cancel, acb.cancel_async):
        with pytest.raises(RuntimeError):
            use()


def test_release_forgets_what_it_held() -> None:
    class Opaque:
        alive = 0

        def __init__(self) -> None:
            type(self).alive += 1

        def __del__(self) -> None:
            type(self).alive -= 1

    acb = qemu_aio_get(AIOPool(), None, None, Opaque())
    acb.complete(0)
    qemu_aio_release(acb)
    gc.collect()
    assert Opaque.alive == 0
    assert (acb.bs, acb.cb, acb.opaque) == (None, None, None)


def test_a_recycled_one_shows_nothing_of_its_former_life() -> None:
    class Mine(BlockDriverAIOCB):
        pass

    pool = AIOPool(None, Mine)
    for _ in range(200):
        acb = qemu_aio_get(pool, "bs", None, "opaque")
        assert not hasattr(acb, "note")
        assert (acb.bs, acb.cb, acb.opaque) == ("bs", None, "opaque")
        acb.note = "of this life"  # type: ignore[attr-defined]
        acb.complete(0)
        qemu_aio_release(acb)
        del acb


def test_the_free_list_is_bounded() -> None:
    pool = AIOPool()
    many = [qemu_aio_get(pool, None, None, None) for _ in range(5000)]
    assert len(set(map(id, many))) == 5000
    for acb in many:
        acb.complete(0)
        qemu_aio_release(acb)
    del acb, many
    gc.collect()
    kept = [o for o in gc.get_objects() if isinstance(o, BlockDriverAIOCB)]
    assert len(kept) <= 1024


@pytest.mark.parametrize("bad", [None, 3, object()])
def test_arguments_are_checked(bad: Any) -> None:
    with pytest.raises(TypeError):
        qemu_aio_get(bad, None, None, None)
    with pytest.raises(TypeError):
        qemu_aio_release(bad)
    if bad is not None:
        with pytest.raises(TypeError):
            qemu_aio_get(AIOPool(), None, bad, None)


# Awaiting --------------------------------------------------------------------------


def test_await_gives_the_result_or_an_oserror(loop: EventLoop, done: Done) -> None:
    driver = BhDriver(loop.context)

    async def main() -> None:
        acb = driver.submit(collect(done), "a")
        assert done == []
        assert await acb == 0
        assert done == [("a", 0)]
        assert await driver.submit(None) == 0
        with pytest.raises(OSError, match=os.strerror(errno.EIO)) as caught:
            await driver.submit(collect(done), "e", -errno.EIO)
        assert caught.value.errno == errno.EIO
        with pytest.raises(FileNotFoundError):
            await driver.submit(None, None, -errno.ENOENT)
        assert done == [("a", 0), ("e", -errno.EIO)]

    loop.run_until_complete(main())


def test_await_something_that_is_done(loop: EventLoop) -> None:
    driver = BhDriver(loop.context)

    async def main() -> None:
        acb = driver.submit(None)
        await asyncio.sleep(0.01)
        assert await acb == 0

    loop.run_until_complete(main())


def test_gather_and_wait_for(loop: EventLoop) -> None:
    driver = BhDriver(loop.context)

    async def main() -> None:
        got = await asyncio.gather(*(driver.submit(None) for _ in range(10)))
        assert got == [0] * 10
        assert await asyncio.wait_for(driver.submit(None), 5) == 0

    loop.run_until_complete(main())


def test_cancelling_the_awaiting_task_waits_for_the_completion(
    loop: EventLoop, done: Done
) -> None:
    driver = BhDriver(loop.context)

    async def request() -> None:
        await driver.submit(collect(done), "t")

    async def main() -> None:
        task = loop.create_task(request())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await loop.context.flushed()
        assert len(done) == 1

    loop.run_until_complete(main())


def test_a_request_that_nobody_awaits_is_no_error(loop: EventLoop) -> None:
    driver = BhDriver(loop.context)

    async def main() -> None:
        driver.submit(None, None, -errno.EIO)
        await loop.context.flushed()
        gc.collect()

    loop.run_until_complete(main())
