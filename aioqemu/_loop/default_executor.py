"""DefaultExecutor: the executor that a loop makes for `run_in_executor(None, ...)`.

What programs see of a WorkerPool, which the loop calls directly.  Programs look at
`loop._default_executor`: it is a ThreadPoolExecutor, and works as one.  Knows no loop
beyond handing futures back to it.
"""

from __future__ import annotations

import concurrent.futures
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from .workers import WorkerPool

if TYPE_CHECKING:
    from collections.abc import Callable

_T = TypeVar("_T")
_P = ParamSpec("_P")


class DefaultExecutor(concurrent.futures.ThreadPoolExecutor):
    """A ThreadPoolExecutor of the default size whose threads are a WorkerPool's.

    Any thread may use it.  Dropped without `shutdown` it finishes what is queued and
    its threads end.

    Attributes:
        pool: Where calls go.
    """

    def __init__(self) -> None:
        self.pool = WorkerPool()
        super().__init__(thread_name_prefix="asyncio")
        self._threads = self.pool.threads
        self._work_queue = self.pool  # type: ignore[assignment]

    def __del__(self) -> None:
        self.pool.end()

    @property
    def _max_workers(self) -> int:
        """Programs ask, and some have been seen to set it."""
        return self.pool.limit

    @_max_workers.setter
    def _max_workers(self, limit: int) -> None:
        self.pool.limit = limit

    def submit(
        self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs
    ) -> concurrent.futures.Future[_T]:
        """Call `fn(*args, **kwargs)` in a thread.

        Raises:
            RuntimeError: After `shutdown`, or while the interpreter exits.
        """
        future: concurrent.futures.Future[_T] = concurrent.futures.Future()
        self.pool.submit(future, _fulfil, (future, fn, args, kwargs))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls and let the threads end when all is done.

        Args:
            wait: Whether to wait for that.
            cancel_futures: Whether to cancel what no thread has begun with.
        """
        self._shutdown = True
        if cancel_futures:
            for future, loop in self.pool.drain():
                if loop is None:
                    future.cancel()
                elif not loop.is_closed():
                    loop.call_soon_threadsafe(future.cancel)
        self.pool.end()
        if wait:
            for thread in list(self._threads):
                thread.join()


def _fulfil(
    future: concurrent.futures.Future[_T],
    fn: Callable[..., _T],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> None:
    """In a thread: make a submitted call."""
    try:
        if not future.set_running_or_notify_cancel():
            return
        try:
            result = fn(*args, **kwargs)
        except BaseException as exc:
            future.set_exception(exc)
        else:
            future.set_result(result)
    finally:
        # The traceback of what was raised holds this frame.
        del future, fn, args, kwargs
