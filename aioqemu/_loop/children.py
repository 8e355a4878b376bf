"""Waiting for one child process: by pidfd, else by asking again and again.

Neither way touches SIGCHLD, reaps a child that is not ours, needs the main thread, a
thread of its own or an asyncio child watcher. It knows pids and exit codes, not pipes
or protocols.
Invariant: a child is reaped in the loop's thread, in the same step that reports it,
so that its pid is never signalled once it may belong to another process.
"""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

from .private import logger

if TYPE_CHECKING:
    import asyncio
    import subprocess
    from collections.abc import Callable

    from ._typing import LoopBase

# Where nothing tells of the end: seconds until the child is asked after again, at first
# and at most. Children that end at once are not kept waiting, others cost little.
_ASK_FIRST_S = 0.0005
_ASK_LAST_S = 0.04

REAPED_ELSEWHERE = 255
"""What is reported for a child whose exit status somebody else has read."""


class ChildWatch:
    """Calls back once, in the loop, with the exit code of a child.

    Args:
        loop: The loop whose thread this is.
        process: The child; its ``pid`` and ``returncode`` are used.
        on_exit: Called with the exit code as ``Popen.returncode`` has it.
    """

    __slots__ = ("_delay", "_loop", "_on_exit", "_pidfd", "_process", "_timer")

    def __init__(
        self,
        loop: LoopBase,
        process: subprocess.Popen[bytes],
        on_exit: Callable[[int], None],
    ) -> None:
        self._loop = loop
        self._process = process
        self._on_exit: Callable[[int], None] | None = on_exit
        self._pidfd = -1
        self._delay = _ASK_FIRST_S
        self._timer: asyncio.TimerHandle | None = None
        try:
            self._pidfd = os.pidfd_open(process.pid)
        except ProcessLookupError:
            # Reaped already: by somebody's wait(), or by the kernel because SIGCHLD
            # is ignored in this process.
            loop.call_soon(self._check)
        except (AttributeError, OSError):
            # No such call in this libc or kernel, forbidden here, or no fd left.
            self._ask_later()
        else:
            try:
                loop._add_reader(self._pidfd, self._check)
            except BaseException:
                self._close_pidfd()
                raise

    def close(self) -> None:
        """Stop watching; nothing is reported from here on. May be called twice."""
        self._on_exit = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._pidfd >= 0:
            self._loop._remove_reader(self._pidfd)
            self._close_pidfd()

    def send_signal(self, signum: int) -> None:
        """Send a signal; a child that is gone gets none.

        Raises:
            PermissionError: The child runs as somebody else.
            OSError: There is no such signal.
        """
        if self._on_exit is None or self._process.returncode is not None:
            return
        try:
            if self._pidfd >= 0:
                try:
                    signal.pidfd_send_signal(self._pidfd, signum)
                except ProcessLookupError:
                    return
                except OSError:
                    # Perhaps only this call is forbidden; kill() knows the reason
                    # otherwise.
                    os.kill(self._process.pid, signum)
            else:
                os.kill(self._process.pid, signum)
        except ProcessLookupError:
            return

    def _check(self) -> None:
        on_exit = self._on_exit
        if on_exit is None:
            return
        code = self._reap()
        if code is None:
            # Not yet. If the pidfd says gone all the same, the child is being traced
            # and its tracer comes first: the pidfd would be reported for ever.
            if self._pidfd >= 0:
                self._loop._remove_reader(self._pidfd)
                self._close_pidfd()
            self._ask_later()
            return
        self.close()
        on_exit(code)

    def _reap(self) -> int | None:
        process = self._process
        if process.returncode is not None:
            return process.returncode
        try:
            pid, status = os.waitpid(process.pid, os.WNOHANG)
        except ChildProcessError:
            known: int | None = process.returncode
            if known is not None:
                # Popen.poll() in another thread was first, and kept the status.
                return known
            logger.warning(
                "child process pid %d exit status already read: "
                " will report returncode 255",
                process.pid,
            )
            return REAPED_ELSEWHERE
        if pid == 0:
            return None
        try:
            return os.waitstatus_to_exitcode(status)
        except ValueError:
            # Neither exited nor killed: shown as it is, it may help to find out.
            return status

    def _close_pidfd(self) -> None:
        fd, self._pidfd = self._pidfd, -1
        os.close(fd)

    def _ask_later(self) -> None:
        self._timer = self._loop.call_later(self._delay, self._check)
        self._delay = min(2 * self._delay, _ASK_LAST_S)
