"""Waiting for one child process: by pidfd, else by a thread that blocks for it.

Neither way touches SIGCHLD, reaps a child that is not ours, needs the main thread or
asks an asyncio child watcher. It knows pids and exit codes, not pipes or protocols.
Invariant: a child is reaped in the loop's thread, in the same step that reports it,
so that its pid is never signalled once it may belong to another process.
"""

from __future__ import annotations

import os
import signal
import threading
from typing import TYPE_CHECKING

from .private import logger

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

    from ._typing import LoopBase

REAPED_ELSEWHERE = 255
"""What is reported for a child whose exit status somebody else has read."""


class ChildWatch:
    """Calls back once, in the loop, with the exit code of a child.

    Args:
        loop: The loop whose thread this is.
        process: The child; its ``pid`` and ``returncode`` are used.
        on_exit: Called with the exit code as ``Popen.returncode`` has it.
    """

    __slots__ = ("_loop", "_on_exit", "_pidfd", "_process")

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
        try:
            self._pidfd = os.pidfd_open(process.pid)
        except ProcessLookupError:
            # Reaped already: by somebody's wait(), or by the kernel because SIGCHLD
            # is ignored in this process.
            loop.call_soon(self._check)
        except (AttributeError, OSError):
            # No such call in this libc or kernel, forbidden here, or no fd left.
            self._start_thread()
        else:
            try:
                loop._add_reader(self._pidfd, self._check)
            except BaseException:
                self._close_pidfd()
                raise

    def close(self) -> None:
        """Stop watching; nothing is reported from here on. May be called twice."""
        self._on_exit = None
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
            # The pidfd says gone and wait() says not yet: the child is being traced
            # and its tracer comes first. Waiting in a thread neither spins nor
            # blocks the loop.
            if self._pidfd >= 0:
                self._loop._remove_reader(self._pidfd)
                self._close_pidfd()
            self._start_thread()
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

    def _start_thread(self) -> None:
        threading.Thread(
            target=self._wait_in_thread,
            name=f"aioqemu-wait-{self._process.pid}",
            daemon=True,
        ).start()

    def _wait_in_thread(self) -> None:
        # WNOWAIT leaves the zombie, and with it the pid, to the loop's thread.
        try:
            os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        except ChildProcessError:
            pass  # reaped elsewhere: _reap() finds and reports that
        try:
            self._loop.call_soon_threadsafe(self._check)
        except RuntimeError:
            if not self._loop.is_closed():
                raise
            # Nobody is left to tell; at least no zombie stays behind.
            self._process.returncode = self._reap()
            logger.warning(
                "Loop %r that handles pid %r is closed", self._loop, self._process.pid
            )
