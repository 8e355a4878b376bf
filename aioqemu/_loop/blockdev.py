"""What block devices owe asyncio: contexts of loops, opening, draining, closing.

Knows no engine and no alignment; those are in `_block`.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import errno
import functools
import os
import weakref
from typing import TYPE_CHECKING, Any

from aioqemu._block.device import BlockDevice as _Device
from aioqemu._block.device import NullDevice as _Null
from aioqemu._block.files import inspect
from aioqemu._block.linux_aio import unavailable as linux_aio_unavailable
from aioqemu._block.request import Engine, Kind
from aioqemu._block.service import Op, service_of
from aioqemu._engine import backends, context
from aioqemu._engine.errors import BackendUnavailable
from aioqemu._loop.aiocontext import AioContext

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator
    from types import TracebackType
    from typing import Self

    from aioqemu._block.service import BlockService

ENGINES = ("auto", "io_uring", "linux_aio", "threads")
_MODES = {
    "r": os.O_RDONLY,
    "r+": os.O_RDWR,
    "w": os.O_RDWR | os.O_CREAT | os.O_TRUNC,
    "w+": os.O_RDWR | os.O_CREAT | os.O_TRUNC,
    "x": os.O_RDWR | os.O_CREAT | os.O_EXCL,
    "x+": os.O_RDWR | os.O_CREAT | os.O_EXCL,
}
_AT_FDCWD = -100
NULL_SIZE = 1 << 30

_contexts: weakref.WeakKeyDictionary[
    asyncio.AbstractEventLoop, weakref.ref[AioContext]
] = weakref.WeakKeyDictionary()


class _GuestContext(AioContext):
    """A context that was made for a loop which has none; it goes with its loop."""

    _keeper: object = None

    def __del__(self) -> None:
        self.close()


async def _until_the_end(ctx: AioContext) -> AsyncGenerator[None]:
    """Close the context when the loop shuts its asynchronous generators down."""
    try:
        yield
    finally:
        ctx.close()


def running_context() -> context.AioContext:
    """The context that serves the running loop; any other loop's is made on demand.

    Raises:
        RuntimeError: no loop is running.
    """
    loop = asyncio.get_running_loop()
    own = getattr(loop, "context", None)
    if isinstance(own, context.AioContext):
        return own
    known = _contexts.get(loop)
    guest = known() if known is not None else None
    if guest is None or guest.closed:
        guest = _GuestContext()
        guest.attach(loop)
        keeper = _until_the_end(guest)
        with contextlib.suppress(StopIteration):
            keeper.__anext__().send(None)  # the loop knows it from its first step on
        guest._keeper = keeper
        _contexts[loop] = weakref.ref(guest)
    return guest


def service(ctx: context.AioContext | None = None) -> BlockService:
    """The block service of a context, by default of the running loop's."""
    found: BlockService = service_of(running_context() if ctx is None else ctx)
    return found


def refusals(served: BlockService) -> dict[str, str | None]:
    """Why each engine cannot serve, or None if it can."""
    aio = linux_aio_unavailable()
    ring = None
    if served.context.fdmon != "io_uring":
        ring = backends.uring_refusal()
    return {
        "io_uring": None if ring is None else str(ring),
        "linux_aio": None if aio is None else str(aio),
        "threads": None,
    }


def _usable(use: Callable[[], None], name: str, asked: str) -> bool:
    """Make an engine ready; what was asked for by name fails loudly."""
    try:
        use()
    except OSError as exc:
        if asked != "auto":
            text = f"engine {name!r} cannot run here: {exc.strerror}"
            raise BackendUnavailable(exc.errno, text) from exc
        return False
    return True


def pick(served: BlockService, engine: str, direct: bool) -> int:
    """The engine for a file.

    Raises:
        ValueError: no engine is called so, or Linux AIO was asked for without `direct`.
        BackendUnavailable: it cannot serve here; says why.
    """
    _check_engine(engine, direct)
    if engine in ("auto", "io_uring") and _usable(served.use_ring, "io_uring", engine):
        return Engine.URING
    wants_aio = engine == "linux_aio" or (engine == "auto" and direct)
    if wants_aio and _usable(served.use_linux_aio, "linux_aio", engine):
        return Engine.AIO
    return Engine.THREADS


def _check_engine(engine: str, direct: bool) -> None:
    if engine not in ENGINES:
        raise ValueError(f"engine must be one of {', '.join(ENGINES)}, not {engine!r}")
    if engine == "linux_aio" and not direct:
        raise ValueError("engine 'linux_aio' needs direct=True: it blocks otherwise")


def _set(over: asyncio.Future[None]) -> None:
    if not over.done() and not over.get_loop().is_closed():
        over.set_result(None)


class _Async(_Device):
    """The awaitable part of a device."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    def __await__(self) -> Generator[Any, None, Self]:
        return self.__aenter__().__await__()

    def _check_loop(self) -> None:
        """Raise RuntimeError where nothing that is in flight could end meanwhile."""
        self._service.check_home()
        driver = getattr(self._service.context, "loop", None)
        if driver is None or driver is asyncio.get_running_loop():
            return
        if self._gate.busy:
            raise RuntimeError(
                "the device has requests in flight, which another event loop drives"
            )

    async def _quiet(self) -> None:
        """Return when nothing is in flight, and not before, cancelled or not."""
        cancelled: asyncio.CancelledError | None = None
        while self._gate.busy:
            over = asyncio.get_running_loop().create_future()
            self._gate.watch(functools.partial(_set, over))
            try:
                await over
            except asyncio.CancelledError as exc:
                cancelled = exc
        if cancelled is not None:
            raise cancelled

    async def close(self) -> None:
        """Wait for what is in flight and close the file; twice does nothing.

        Requests that wait for the end of a drained section fail with ECANCELED.
        Nothing is flushed: `await blk.flush()` before if the data matters.

        Raises:
            RuntimeError: called in another thread than the context's, or on another
                loop while requests are in flight.
        """
        self._check_loop()
        if self._closed:
            return
        self._closed = True
        try:
            await self._quiet()
        finally:
            self._gate.turn_away()
            fd, self._fd = self._fd, -1
            if fd >= 0:
                # At once: nobody could say later whether the number was still ours.
                os.close(fd)

    @contextlib.asynccontextmanager
    async def drained(self) -> AsyncIterator[None]:
        """Nothing of the device is in flight inside (QEMU's drained section).

        Requests made meanwhile, by anybody, wait and start at the end, in order: they
        must not be awaited inside.

        Raises:
            RuntimeError: as `close`.
        """
        self._check_loop()
        self._gate.quiesce()
        try:
            await self._quiet()
            yield
        finally:
            self._gate.resume()

    @contextlib.asynccontextmanager
    async def batch(self) -> AsyncIterator[None]:
        """Requests made inside go to the kernel together, at the end at last."""
        self._service.plug()
        try:
            yield
        finally:
            self._service.unplug()


class BlockDevice(_Async):
    __doc__ = _Device.__doc__


class NullDevice(_Async, _Null):
    __doc__ = _Null.__doc__


def make_device(
    fd: int,
    path: Any,
    served: BlockService,
    engine: int,
    *,
    writable: bool,
    direct: bool,
    max_in_flight: int,
    strict_alignment: bool,
) -> BlockDevice:
    """Wrap an open fd; it is closed if that fails."""
    try:
        return BlockDevice(
            served,
            fd,
            inspect(fd, direct),
            path=path,
            engine=engine,
            read_only=not writable,
            direct=direct,
            max_in_flight=max_in_flight,
            strict_alignment=strict_alignment,
        )
    except OSError as exc:
        os.close(fd)
        exc.filename = path
        raise
    except BaseException:
        os.close(fd)
        raise


class Opening:
    """What `block.open` gives: for `await` or `async with`."""

    def __init__(
        self,
        path: Any,
        mode: str,
        *,
        engine: str,
        direct: bool,
        max_in_flight: int,
        strict_alignment: bool,
        ctx: context.AioContext | None,
    ) -> None:
        if mode not in _MODES:
            raise ValueError(f"mode must be one of {', '.join(_MODES)}, not {mode!r}")
        _check_engine(engine, direct)
        if max_in_flight < 1:
            raise ValueError(f"max_in_flight must be at least 1, not {max_in_flight}")
        self._path = path if path == "null://" else os.fspath(path)
        self._flags = _MODES[mode] | os.O_CLOEXEC | (os.O_DIRECT if direct else 0)
        self._engine = engine
        self._ctx = ctx
        self._writable = mode != "r"
        self._direct = direct
        self._max_in_flight = max_in_flight
        self._strict_alignment = strict_alignment
        self._wrap: Callable[[BlockDevice | NullDevice], Any] = lambda blk: blk
        self._opened: Any = None
        self._entered = False

    def __await__(self) -> Generator[Any, None, BlockDevice]:
        return self._open().__await__()

    async def __aenter__(self) -> BlockDevice:
        if self._entered:
            # The device of the first block would be forgotten, and stay open.
            raise RuntimeError("the opening is in use: call block.open() once for each")
        self._entered = True
        try:
            self._opened = await self._open()
        except BaseException:
            self._entered = False
            raise
        blk: BlockDevice = self._opened
        return blk

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        opened, self._opened, self._entered = self._opened, None, False
        await opened.close()

    def now(self) -> BlockDevice:
        """Open at once, with blocking calls; for code without coroutines."""
        served = service(self._ctx)
        engine = pick(served, self._engine, self._direct)
        fd = os.open(self._path, self._flags, 0o666)
        return self._made(fd, served, engine)

    def _made(self, fd: int, served: BlockService, engine: int) -> BlockDevice:
        blk = make_device(
            fd,
            self._path,
            served,
            engine,
            writable=self._writable,
            direct=self._direct,
            max_in_flight=self._max_in_flight,
            strict_alignment=self._strict_alignment,
        )
        wrapped: BlockDevice = self._wrap(blk)
        return wrapped

    def wrapped(self, wrap: Callable[[Any], Any]) -> Opening:
        """The same opening, whose device is put into something else."""
        other = copy.copy(self)
        before = self._wrap
        other._wrap = lambda blk: wrap(before(blk))
        return other

    async def _open(self) -> BlockDevice:
        served = service(self._ctx)
        if self._path == "null://":
            device = NullDevice(
                served,
                NULL_SIZE,
                0.0,
                self._max_in_flight,
                read_only=not self._writable,
            )
            null: BlockDevice = self._wrap(device)
            return null
        engine = pick(served, self._engine, self._direct)
        abandoned = False

        def opened(ret: int) -> int:
            if abandoned and ret >= 0:
                os.close(ret)
                return -errno.ECANCELED
            return ret

        request = served.control(
            Op.OPENAT,
            _AT_FDCWD,
            engine,
            path=os.fsencode(self._path),
            flags=self._flags,
            mode=0o666,
            kind=Kind.RET_INT,
            filename=self._path,
            after=opened,
        )
        try:
            fd = await request
        except BaseException:
            # Cancelled, or dropped: nobody will ever know the number.
            ret = request.ret
            if ret is None:
                abandoned = True
            elif ret >= 0 and not request.cancelled():
                os.close(ret)
            raise
        return self._made(fd, served, engine)
