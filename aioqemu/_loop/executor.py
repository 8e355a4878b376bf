"""Calls in worker threads: run_in_executor and the life of the default executor.

It knows concurrent.futures and nothing of fds or of the engine.  What threads of the
loop's own executor hand back comes by way of workers.pyx; from all others it enters
the loop through call_soon_threadsafe only.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import sys
import threading
import warnings
from typing import TYPE_CHECKING, TypeVar, TypeVarTuple, Unpack

from .default_executor import DefaultExecutor
from .private import iscoroutinefunction

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._typing import LoopBase
else:
    LoopBase = object

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")


def _settle(future: asyncio.Future[None], error: Exception | None) -> None:
    """End a future from the loop's thread, unless its awaiter has gone."""
    if future.done():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)


class ExecutorMixin(LoopBase):
    """``run_in_executor`` and the default executor of a loop."""

    _default_executor: concurrent.futures.Executor | None
    _executor_shutdown_called: bool

    def _init_executor(self) -> None:
        self._default_executor = None
        self._executor_shutdown_called = False

    def _forget_threads(self) -> None:
        """In a forked child: the threads of the default executor are the parent's."""
        if isinstance(self._default_executor, concurrent.futures.ThreadPoolExecutor):
            self._default_executor = None

    def _close_executor(self) -> None:
        self._executor_shutdown_called = True
        executor, self._default_executor = self._default_executor, None
        if executor is not None:
            executor.shutdown(wait=False)

    def run_in_executor(
        self,
        executor: concurrent.futures.Executor | None,
        func: Callable[[Unpack[_Ts]], _T],
        *args: *_Ts,
    ) -> asyncio.Future[_T]:
        """Call ``func(*args)`` in a worker thread or process.

        Args:
            executor: Where to run it; None stands for the loop's default executor.
            func: What to call.
            args: Its arguments.

        Raises:
            RuntimeError: The loop is closed, or the default executor was shut down.
            TypeError: In debug mode, ``func`` is a coroutine or is not callable.
        """
        self._check_closed()
        if self._debug:
            _check_plain_callable(func)
        if executor is None:
            if self._executor_shutdown_called:
                raise RuntimeError("Executor shutdown has been called")
            executor = self._default_executor
            if executor is None:
                executor = self._default_executor = DefaultExecutor()
            if type(executor) is DefaultExecutor:
                return executor.pool.call(self, func, args)
        return asyncio.wrap_future(executor.submit(func, *args), loop=self)

    def set_default_executor(  # type: ignore[override]
        self, executor: concurrent.futures.ThreadPoolExecutor
    ) -> None:
        """Set the executor that ``run_in_executor(None, ...)`` uses.

        Raises:
            TypeError: It is not a ThreadPoolExecutor.
        """
        if not isinstance(executor, concurrent.futures.ThreadPoolExecutor):
            raise TypeError("executor must be ThreadPoolExecutor instance")
        self._default_executor = executor

    if sys.version_info >= (3, 12):

        async def shutdown_default_executor(self, timeout: float | None = None) -> None:
            """Shut the default executor down and wait for its threads.

            Args:
                timeout: Seconds to wait; None waits as long as it takes. When they
                    are over a RuntimeWarning is given and the threads are left.
            """
            executor, future, thread = self._begin_executor_shutdown()
            if executor is None or future is None or thread is None:
                return
            try:
                async with asyncio.timeout(timeout):
                    await future
            except TimeoutError:
                warnings.warn(
                    "The executor did not finishing joining "
                    f"its threads within {timeout} seconds.",
                    RuntimeWarning,
                    stacklevel=2,
                )
                executor.shutdown(wait=False)
            else:
                thread.join()

    else:

        async def shutdown_default_executor(self) -> None:
            """Shut the default executor down and wait for its threads."""
            _, future, thread = self._begin_executor_shutdown()
            if future is None or thread is None:
                return
            try:
                await future
            finally:
                thread.join()

    def _begin_executor_shutdown(
        self,
    ) -> tuple[
        concurrent.futures.Executor | None,
        asyncio.Future[None] | None,
        threading.Thread | None,
    ]:
        self._executor_shutdown_called = True
        executor = self._default_executor
        if executor is None:
            return None, None, None
        future: asyncio.Future[None] = self.create_future()
        thread = threading.Thread(target=self._join_executor, args=(executor, future))
        thread.start()
        return executor, future, thread

    def _join_executor(
        self, executor: concurrent.futures.Executor, future: asyncio.Future[None]
    ) -> None:
        error: Exception | None = None
        try:
            executor.shutdown(wait=True)
        except Exception as exc:
            error = exc
        if not self.is_closed():
            self.call_soon_threadsafe(_settle, future, error)


def _check_plain_callable(func: object) -> None:
    if asyncio.iscoroutine(func) or iscoroutinefunction(func):
        raise TypeError("coroutines cannot be used with run_in_executor()")
    if not callable(func):
        raise TypeError(
            f"a callable object was expected by run_in_executor(), got {func!r}"
        )
