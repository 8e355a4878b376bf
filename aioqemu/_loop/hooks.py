"""Running the loop, making tasks, and what happens to exceptions nobody caught.

The cold frame around the core's passes: set-up and tear-down of a run, the task
factory and the exception handler, with the semantics and the texts of the stock loop.
It must never know about fds, timers or backends. Invariant: whatever leaves a run, an
exception included, leaves the thread without a running loop and with the hooks it had
before.
"""

from __future__ import annotations

import asyncio
import sys
import traceback
import warnings
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import TYPE_CHECKING, Any, TypeVar

from .asyncgens import AsyncGensMixin
from .private import (
    constants,
    events,
    is_debug_mode,
    logger,
)

if TYPE_CHECKING:
    from contextvars import Context

_T = TypeVar("_T")
_ExceptionContext = dict[str, Any]
_ExceptionHandler = Callable[[asyncio.AbstractEventLoop, _ExceptionContext], object]

# How create_task() treats a task factory changed within the life of 3.13, so the
# stock method of the running interpreter is asked instead of its version:
# no **kwargs -> factory(loop, coro), then set_name(); **kwargs -> all passed on, and
# the releases that also name `name` and `context` always pass those two.
_STOCK_CREATE_TASK = asyncio.BaseEventLoop.create_task.__code__
_CO_VARKEYWORDS = 0x08
_FACTORY_GETS_ALL = bool(_STOCK_CREATE_TASK.co_flags & _CO_VARKEYWORDS)
_FACTORY_GETS_NAMED = _FACTORY_GETS_ALL and _STOCK_CREATE_TASK.co_kwonlyargcount > 0

_HANDLER_IN_CONTEXT = sys.version_info >= (3, 12)


def _stop_when_done(future: asyncio.Future[Any]) -> None:
    if not future.cancelled() and isinstance(
        future.exception(), (SystemExit, KeyboardInterrupt)
    ):
        # These have left run_forever() already; a stop() now would make the next
        # run end after one pass.
        return
    future.get_loop().stop()


def _name_task(task: Any, name: str | None) -> None:
    """Name a task that a factory made, as the stock loop of this version does."""
    if sys.version_info >= (3, 13):
        task.set_name(name)
    elif name is not None:
        try:
            set_name = task.set_name
        except AttributeError:
            warnings.warn(
                "Task.set_name() was added in Python 3.8, "
                "the method support will be mandatory for third-party "
                "task implementations since 3.13.",
                DeprecationWarning,
                stacklevel=3,
            )
        else:
            set_name(name)


def _context_of(report: _ExceptionContext) -> Context | None:
    """Find the context that a handler of ``report`` runs in (Python 3.12 and later)."""
    for key in ("task", "future", "handle"):
        thing = report.get(key)
        if thing is not None:
            get_context = getattr(thing, "get_context", None)
            context = None if get_context is None else get_context()
            return context if hasattr(context, "run") else None
    return None


def _traceback_text(what: str, stack: traceback.StackSummary) -> str:
    frames = "".join(traceback.format_list(stack)).rstrip()
    return f"{what} created at (most recent call last):\n{frames}"


class HooksMixin(AsyncGensMixin):
    """Runs, tasks, exception handlers and debug mode of a loop."""

    _task_factory: Callable[..., Any] | None
    _exception_handler: _ExceptionHandler | None
    _saved_origin_depth: int | None

    def _init_hooks(self) -> None:
        self._task_factory = None
        self._exception_handler = None
        self._init_asyncgens()
        self._saved_origin_depth = None
        self.set_debug(is_debug_mode())

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} running={self.is_running()} "
            f"closed={self.is_closed()} debug={self.get_debug()}>"
        )

    def __del__(self, _warn: Callable[..., None] = warnings.warn) -> None:
        if getattr(self, "_asyncgens", None) is None:
            return  # the constructor failed: there is no loop to speak of
        if not self.is_closed():
            _warn(f"unclosed event loop {self!r}", ResourceWarning, source=self)
            if not self.is_running():
                self.close()

    # -- running

    def _check_running(self) -> None:
        if self.is_running():
            raise RuntimeError("This event loop is already running")
        if events._get_running_loop() is not None:
            raise RuntimeError(
                "Cannot run the event loop while another loop is running"
            )

    def _run_forever_setup(self) -> None:
        self._check_closed()
        self._check_running()
        self._enter_run()
        self._track_coroutine_origins(self._debug)
        self._set_agen_hooks()
        events._set_running_loop(self)

    def _run_forever_cleanup(self) -> None:
        self._leave_run()
        events._set_running_loop(None)
        self._track_coroutine_origins(False)
        self._restore_agen_hooks()

    def run_forever(self) -> None:
        """Run passes until ``stop()`` is called.

        Raises:
            RuntimeError: The loop is closed or running, or another one runs in this
                thread.
        """
        self._run_forever_setup()
        try:
            self._run()
        finally:
            self._run_forever_cleanup()

    def run_until_complete(
        self, future: Awaitable[_T] | Generator[Any, None, _T]
    ) -> _T:
        """Run until ``future`` is done and return its result or raise its exception.

        Args:
            future: A future of this loop, or a coroutine or awaitable, which is
                wrapped in a task.

        Raises:
            RuntimeError: As ``run_forever()``, or the loop was stopped before the
                future was done.
        """
        self._check_closed()
        self._check_running()
        is_ours = not asyncio.isfuture(future)
        task: asyncio.Future[_T] = asyncio.ensure_future(
            future,  # type: ignore[arg-type]
            loop=self,
        )
        if is_ours:
            # If it stays pending, the RuntimeError below says so; its destruction
            # has nothing to add.
            task._log_destroy_pending = False  # type: ignore[attr-defined]
        task.add_done_callback(_stop_when_done)
        try:
            self.run_forever()
        except BaseException:
            if is_ours and task.done() and not task.cancelled():
                # The caller cannot reach this task: mark its exception as seen.
                task.exception()
            raise
        finally:
            task.remove_done_callback(_stop_when_done)
        if not task.done():
            raise RuntimeError("Event loop stopped before Future completed.")
        return task.result()

    # -- debug mode

    def set_debug(self, enabled: bool) -> None:
        """Turn debug mode on or off; coroutine origins follow in the next pass."""
        super().set_debug(enabled)
        if self.is_running():
            self.call_soon_threadsafe(self._track_coroutine_origins, enabled)

    def _track_coroutine_origins(self, enabled: bool) -> None:
        # The depth belongs to the thread, hence only while this loop runs there.
        if bool(enabled) == (self._saved_origin_depth is not None):
            return
        if enabled:
            self._saved_origin_depth = sys.get_coroutine_origin_tracking_depth()
            sys.set_coroutine_origin_tracking_depth(constants.DEBUG_STACK_DEPTH)
        elif self._saved_origin_depth is not None:
            sys.set_coroutine_origin_tracking_depth(self._saved_origin_depth)
            self._saved_origin_depth = None

    # -- tasks: `create_task` is native, and asks here for what is not plain

    if _FACTORY_GETS_NAMED:

        def _make_task(  # pragma: no cover - 3.13.4 and later 3.13
            self,
            coro: Coroutine[Any, Any, _T] | Generator[Any, None, _T],
            *,
            name: str | None = None,
            context: Context | None = None,
            **kwargs: Any,
        ) -> asyncio.Task[_T]:
            return self._new_task(coro, name=name, context=context, **kwargs)

    elif _FACTORY_GETS_ALL:

        def _make_task(  # type: ignore[misc]
            self,
            coro: Coroutine[Any, Any, _T] | Generator[Any, None, _T],
            **kwargs: Any,
        ) -> asyncio.Task[_T]:
            self._check_closed()
            factory = self._task_factory
            if factory is not None:
                return factory(self, coro, **kwargs)  # type: ignore[no-any-return]
            if self._debug:
                return self._new_task(coro, **kwargs)
            return asyncio.Task(coro, loop=self, **kwargs)  # type: ignore[arg-type,unused-ignore]

    else:

        def _make_task(  # type: ignore[misc]
            self,
            coro: Coroutine[Any, Any, _T] | Generator[Any, None, _T],
            *,
            name: str | None = None,
            context: Context | None = None,
        ) -> asyncio.Task[_T]:
            self._check_closed()
            factory = self._task_factory
            if factory is None:
                if self._debug:
                    return self._new_task(coro, name=name, context=context)
                return asyncio.Task(
                    coro,  # type: ignore[arg-type,unused-ignore]
                    loop=self,
                    name=name,
                    context=context,
                )
            if context is None:
                # Factories of the two-argument kind are still about.
                task: asyncio.Task[_T] = factory(self, coro)
            else:
                task = factory(self, coro, context=context)
            _name_task(task, name)
            return task

    def _new_task(self, coro: Any, **kwargs: Any) -> asyncio.Task[Any]:
        self._check_closed()
        if self._task_factory is not None:
            return self._task_factory(self, coro, **kwargs)  # type: ignore[no-any-return]
        task: asyncio.Task[Any] = asyncio.Task(coro, loop=self, **kwargs)
        stack = task._source_traceback  # type: ignore[attr-defined]
        if stack:
            # The caller's frame is the interesting one, not this module's two.
            del stack[-2:]
        try:
            return task
        finally:
            # An eager task may have failed already; its traceback holds this frame.
            del task

    def set_task_factory(self, factory: Callable[..., Any] | None) -> None:
        """Set what ``create_task()`` makes tasks with; None stands for the default.

        Raises:
            TypeError: The factory is not callable.
        """
        if factory is not None and not callable(factory):
            raise TypeError("task factory must be a callable or None")
        self._task_factory = factory

    def get_task_factory(self) -> Callable[..., Any] | None:
        """Return the task factory, or None for the default."""
        return self._task_factory

    # -- exceptions

    def get_exception_handler(self) -> _ExceptionHandler | None:
        """Return the exception handler, or None for the default."""
        return self._exception_handler

    def set_exception_handler(self, handler: _ExceptionHandler | None) -> None:
        """Set ``handler(loop, context)`` for uncaught exceptions; None is the default.

        Raises:
            TypeError: The handler is not callable.
        """
        if handler is not None and not callable(handler):
            raise TypeError(f"A callable object or None is expected, got {handler!r}")
        self._exception_handler = handler

    def default_exception_handler(self, context: _ExceptionContext) -> None:
        """Log what ``context`` tells about an uncaught exception."""
        message = context.get("message") or "Unhandled exception in event loop"
        exception = context.get("exception")
        exc_info: Any = False
        if exception is not None:
            exc_info = (type(exception), exception, exception.__traceback__)

        handle = self._current_handle
        if "source_traceback" not in context and handle is not None:
            stack = handle._source_traceback
            if stack:
                context["handle_traceback"] = stack

        lines = [message]
        for key in sorted(context):
            if key in ("message", "exception"):
                continue
            value = context[key]
            if key == "source_traceback":
                text = _traceback_text("Object", value)
            elif key == "handle_traceback":
                text = _traceback_text("Handle", value)
            else:
                text = repr(value)
            lines.append(f"{key}: {text}")
        logger.error("\n".join(lines), exc_info=exc_info)

    def call_exception_handler(self, context: _ExceptionContext) -> None:
        """Report an uncaught exception; never raises, but for exit and interrupt.

        Args:
            context: ``message`` and, where they exist, ``exception``, ``future``,
                ``task``, ``handle``, ``protocol``, ``transport``, ``socket``,
                ``asyncgen``, ``source_traceback``, ``handle_traceback``.
        """
        handler = self._exception_handler
        if handler is None:
            self._report(context, "Exception in default exception handler")
            return
        try:
            where = _context_of(context) if _HANDLER_IN_CONTEXT else None
            if where is None:
                handler(self, context)
            else:
                where.run(handler, self, context)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self._report(
                {
                    "message": "Unhandled error in exception handler",
                    "exception": exc,
                    "context": context,
                },
                "Exception in default exception handler "
                "while handling an unexpected error "
                "in custom exception handler",
            )

    def _report(self, context: _ExceptionContext, if_broken: str) -> None:
        # A subclass may have replaced the default handler by one that fails.
        try:
            self.default_exception_handler(context)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException:
            logger.exception(if_broken)
