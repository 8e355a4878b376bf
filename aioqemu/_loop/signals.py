"""Unix signals as loop callbacks, through one self-pipe per loop.

The interpreter's C handler writes the signal's number into the pipe
(``signal.set_wakeup_fd``) and the loop reads it like any other fd. The pipe is made
with the first handler and never before. Only the main thread can do any of this, as
in CPython. It must never know how the loop waits.
"""

from __future__ import annotations

import asyncio
import contextvars
import errno
import os
import signal
import sys
import threading
import warnings
from typing import TYPE_CHECKING, Any, TypeVarTuple, Unpack

from .private import iscoroutinefunction, logger

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from ._typing import LoopBase
else:
    LoopBase = object

_Ts = TypeVarTuple("_Ts")

_PIPE_READ_SIZE = 4096


if sys.version_info < (3, 12):
    # Later Pythons do it themselves: a forked child must not write its signals into the
    # parent's pipe.  The descriptor of another loop's making may go with ours here.
    def _let_go_of_wakeup_fd() -> None:
        if threading.current_thread() is threading.main_thread():
            signal.set_wakeup_fd(-1)

    os.register_at_fork(after_in_child=_let_go_of_wakeup_fd)


def _note_nothing(signum: int, frame: FrameType | None) -> None:
    """Stand in as the Python-level handler: what counts is the byte in the pipe."""


class SignalsMixin(LoopBase):
    """``add_signal_handler`` and ``remove_signal_handler`` of a loop."""

    _signal_handlers: dict[
        int, tuple[Callable[..., object], tuple[Any, ...], contextvars.Context]
    ]
    _signal_read_fd: int
    _signal_write_fd: int

    def _init_signals(self) -> None:
        self._signal_handlers = {}
        self._signal_read_fd = -1
        self._signal_write_fd = -1

    def _close_signals(self) -> None:
        if sys.is_finalizing():
            if self._signal_handlers:
                warnings.warn(
                    f"Closing the loop {self!r} on interpreter shutdown "
                    f"stage, skipping signal handlers removal",
                    ResourceWarning,
                    source=self,
                    stacklevel=2,
                )
                self._signal_handlers.clear()
        else:
            self._remove_all_signal_handlers()
        read_fd, self._signal_read_fd = self._signal_read_fd, -1
        write_fd, self._signal_write_fd = self._signal_write_fd, -1
        if read_fd >= 0:
            self._remove_reader(read_fd)
            os.close(read_fd)
        if write_fd >= 0:
            os.close(write_fd)

    def _remove_all_signal_handlers(self) -> None:
        for sig in list(self._signal_handlers):
            try:
                self.remove_signal_handler(sig)
            except ValueError:
                # Not the main thread. The interpreter goes on writing to the fd, so
                # its number must not become anybody else's: it stays open, and what
                # is written goes nowhere.
                warnings.warn(
                    f"Closing the loop {self!r} outside of the main thread, "
                    f"its signal handlers stay installed",
                    ResourceWarning,
                    source=self,
                    stacklevel=3,
                )
                self._signal_handlers.clear()
                nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
                os.dup2(nowhere, self._signal_write_fd, inheritable=False)
                os.close(nowhere)
                self._signal_write_fd = -1
                return

    def add_signal_handler(
        self,
        sig: int,
        callback: Callable[[Unpack[_Ts]], object],
        *args: *_Ts,
    ) -> None:
        """Call ``callback(*args)`` in the loop whenever the signal arrives.

        Args:
            sig: Signal number; a handler it had in this loop is replaced.
            callback: A plain function, not a coroutine function.
            args: Its arguments.

        Raises:
            TypeError: ``sig`` is no int, or the callback is a coroutine (function).
            ValueError: There is no such signal.
            RuntimeError: The loop is closed, the signal cannot be caught, or this is
                not the main thread.
        """
        given: object = callback
        if asyncio.iscoroutine(given) or iscoroutinefunction(given):
            raise TypeError("coroutines cannot be used with add_signal_handler()")
        self._check_signal(sig)
        self._check_closed()
        self._claim_wakeup_fd()
        self._signal_handlers[sig] = (callback, args, contextvars.copy_context())
        try:
            signal.signal(sig, _note_nothing)
            # System calls of other threads and of C code are restarted, not failed.
            signal.siginterrupt(sig, False)
        except OSError as exc:
            del self._signal_handlers[sig]
            if not self._signal_handlers:
                self._release_wakeup_fd()
            if exc.errno == errno.EINVAL:
                raise RuntimeError(f"sig {sig} cannot be caught") from None
            raise

    def remove_signal_handler(self, sig: int) -> bool:
        """Undo ``add_signal_handler``; SIGINT gets KeyboardInterrupt back.

        Returns:
            Whether there was a handler.

        Raises:
            TypeError: ``sig`` is no int.
            ValueError: There is no such signal, or this is not the main thread.
            RuntimeError: The signal cannot be caught.
        """
        self._check_signal(sig)
        if sig not in self._signal_handlers:
            return False
        default = signal.default_int_handler if sig == signal.SIGINT else signal.SIG_DFL
        try:
            signal.signal(sig, default)
        except OSError as exc:
            del self._signal_handlers[sig]
            if exc.errno == errno.EINVAL:
                raise RuntimeError(f"sig {sig} cannot be caught") from None
            raise
        del self._signal_handlers[sig]
        if not self._signal_handlers:
            self._release_wakeup_fd()
        return True

    @staticmethod
    def _check_signal(sig: int) -> None:
        if not isinstance(sig, int):
            raise TypeError(f"sig must be an int, not {sig!r}")
        if sig not in signal.valid_signals():
            raise ValueError(f"invalid signal number {sig}")

    def _claim_wakeup_fd(self) -> None:
        if self._signal_write_fd >= 0:
            try:
                signal.set_wakeup_fd(self._signal_write_fd)
            except (ValueError, OSError) as exc:
                raise RuntimeError(str(exc)) from None
            return
        read_fd, write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            signal.set_wakeup_fd(write_fd)
        except (ValueError, OSError) as exc:
            os.close(read_fd)
            os.close(write_fd)
            raise RuntimeError(str(exc)) from None
        self._signal_read_fd, self._signal_write_fd = read_fd, write_fd
        self._add_reader(read_fd, self._read_signals)

    def _release_wakeup_fd(self) -> None:
        try:
            previous = signal.set_wakeup_fd(-1)
            if previous not in (-1, self._signal_write_fd):
                # Another loop has claimed it since; it is still listening.
                signal.set_wakeup_fd(previous)
        except (ValueError, OSError) as exc:
            logger.info("set_wakeup_fd(-1) failed: %s", exc)

    def _read_signals(self) -> None:
        while True:
            try:
                numbers = os.read(self._signal_read_fd, _PIPE_READ_SIZE)
            except (BlockingIOError, InterruptedError):
                return
            for sig in numbers:
                entry = self._signal_handlers.get(sig)
                # None: removed meanwhile, or a signal that others handle.
                if entry is not None:
                    callback, args, context = entry
                    self.call_soon(callback, *args, context=context)
            if len(numbers) < _PIPE_READ_SIZE:
                return
