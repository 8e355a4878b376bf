"""The transport of a child process: its pipes, its end, and their order.

The child is spawned by ``subprocess.Popen`` (vfork where it can, ``preexec_fn`` and
the rest where they are asked for), its pipes are ordinary pipe transports, and its
end comes from a ChildWatch. It must never touch SIGCHLD or a child watcher.
Invariant: no event reaches the protocol before connection_made, and from then on
they reach it in the order in which they happened.
"""

from __future__ import annotations

import asyncio
import collections
import os
import subprocess
import warnings
from typing import TYPE_CHECKING, Any

from .children import ChildWatch
from .private import (
    BaseSubprocessTransport,
    _set_result_unless_cancelled,
    logger,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from .process import ProcessMixin

Command = str | bytes | tuple[Any, ...]

_STDIN, _STDOUT, _STDERR = range(3)

# Process.wait() returns at the exit of the child from some release of Python on, and
# when its pipes are closed too before that. Patch releases differ, so the stock code
# is asked.
_WAIT_ENDS_AT_EXIT = (
    "_exit_waiters" in BaseSubprocessTransport._process_exited.__code__.co_names
)


class _WritePipeProtocol(asyncio.BaseProtocol):
    """Our end of the child's stdin."""

    def __init__(self, process: SubprocessTransport, fd: int) -> None:
        self.process: SubprocessTransport | None = process
        self.fd = fd
        self.pipe: Any = None
        self.disconnected = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} fd={self.fd} pipe={self.pipe!r}>"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.pipe = transport

    def connection_lost(self, exc: BaseException | None) -> None:
        self.disconnected = True
        process, self.process = self.process, None
        if process is not None:
            process._pipe_connection_lost(self.fd, exc)

    def pause_writing(self) -> None:
        if self.process is not None:
            self.process._protocol.pause_writing()

    def resume_writing(self) -> None:
        if self.process is not None:
            self.process._protocol.resume_writing()


class _ReadPipeProtocol(_WritePipeProtocol, asyncio.Protocol):
    """Our end of the child's stdout or stderr."""

    def data_received(self, data: bytes) -> None:
        if self.process is not None:
            self.process._pipe_data_received(self.fd, data)


class SubprocessTransport(asyncio.SubprocessTransport):
    """A running child process and its pipes; made by ``loop.subprocess_exec()``.

    Loop thread only, as all transports. ``get_extra_info("subprocess")`` gives the
    ``subprocess.Popen``.
    """

    def __init__(
        self,
        loop: ProcessMixin,
        protocol: Any,
        args: Command,
        shell: bool,
        stdin: Any,
        stdout: Any,
        stderr: Any,
        bufsize: int,
        extra: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self._extra: dict[str, Any]
        super().__init__(extra)
        self._closed = False
        self._finished = False
        self._abandoned = False
        self._loop: Any = loop
        self._protocol: Any = protocol
        self._proc: subprocess.Popen[bytes] | None = None
        self._watch: ChildWatch | None = None
        self._pid: int | None = None
        self._returncode: int | None = None
        self._exit_waiters: set[asyncio.Future[Any]] = set()
        # Events from before connection_made; None once they go straight through.
        self._pending: collections.deque[tuple[Callable[..., Any], Any]] | None = (
            collections.deque()
        )
        self._pipes: dict[int, _WritePipeProtocol | None] = {
            fd: None
            for fd, what in ((_STDIN, stdin), (_STDOUT, stdout), (_STDERR, stderr))
            if what == subprocess.PIPE
        }
        try:
            process = subprocess.Popen(
                args,
                shell=shell,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                universal_newlines=False,
                bufsize=bufsize,
                **kwargs,
            )
        except BaseException:
            self.close()
            raise
        self._proc = process
        self._pid = process.pid
        self._extra["subprocess"] = process
        try:
            self._watch = ChildWatch(loop, process, self._process_exited)
        except BaseException:
            # Nobody would ever reap it.
            self.close()
            process.wait()
            raise
        loop._child_watches[process.pid] = self._watch
        if loop.get_debug():
            program = args if isinstance(args, (bytes, str)) else args[0]
            logger.debug("process %r created: pid %s", program, self._pid)

    def __repr__(self) -> str:
        info = [type(self).__name__]
        if self._closed:
            info.append("closed")
        if self._pid is not None:
            info.append(f"pid={self._pid}")
        if self._returncode is not None:
            info.append(f"returncode={self._returncode}")
        elif self._pid is not None:
            info.append("running")
        else:
            info.append("not started")
        stdin, stdout, stderr = (
            self._pipes.get(fd) for fd in (_STDIN, _STDOUT, _STDERR)
        )
        if stdin is not None:
            info.append(f"stdin={stdin.pipe}")
        if stdout is not None:
            info.append(f"stdout={stdout.pipe}")
        if stderr is not None:
            info.append(f"stderr={stderr.pipe}")
        return f"<{' '.join(info)}>"

    def __del__(self, _warn: Callable[..., None] = warnings.warn) -> None:
        if not self._closed:
            _warn(f"unclosed transport {self!r}", ResourceWarning, source=self)
            self.close()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Make ``protocol`` the receiver of what happens from now on."""
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Return the protocol."""
        return self._protocol  # type: ignore[no-any-return]

    def is_closing(self) -> bool:
        """Tell whether ``close()`` was called."""
        return self._closed

    def get_pid(self) -> int:
        """Return the process id."""
        return self._pid  # type: ignore[return-value]

    def get_returncode(self) -> int | None:
        """Return the exit code, ``-N`` for a death by signal N, None while running."""
        return self._returncode

    def get_pipe_transport(self, fd: int) -> Any:
        """Return the transport of the child's fd 0, 1 or 2, or None without a pipe."""
        pipe = self._pipes.get(fd)
        return None if pipe is None else pipe.pipe

    def send_signal(self, signal: int) -> None:
        """Send a signal to the child; a child that has exited gets none.

        Raises:
            ProcessLookupError: The child has exited and all is over.
        """
        if self._proc is None or self._watch is None:
            raise ProcessLookupError
        self._watch.send_signal(signal)

    def terminate(self) -> None:
        """Send SIGTERM, as ``send_signal()`` does."""
        self.send_signal(15)

    def kill(self) -> None:
        """Send SIGKILL, as ``send_signal()`` does."""
        self.send_signal(9)

    def close(self) -> None:
        """Close the pipes and kill the child if it still runs. May be called twice."""
        if self._closed:
            return
        self._closed = True
        if self._loop is not None and not self._loop.is_closed():
            for pipe in self._pipes.values():
                if pipe is not None and pipe.pipe is not None:
                    pipe.pipe.close()
        process = self._proc
        if process is None or self._returncode is not None or not _is_alive(process):
            return
        if self._loop.get_debug():
            logger.warning("Close running child process: kill %r", self)
        try:
            process.kill()
        except (ProcessLookupError, PermissionError):
            # Gone this very moment, or setuid and not ours to kill.
            return

    async def _wait(self) -> int:
        """Wait for the exit and return the code; asyncio.subprocess calls this."""
        if self._returncode is not None:
            return self._returncode
        waiter: asyncio.Future[int] = self._loop.create_future()
        self._exit_waiters.add(waiter)
        try:
            return await waiter
        finally:
            self._exit_waiters.discard(waiter)

    async def _connect_pipes(self) -> None:
        """Connect the pipes, then let connection_made be the protocol's first call."""
        loop = self._loop
        process = self._proc
        assert process is not None
        connect: Callable[..., Any]
        for fd, raw in enumerate((process.stdin, process.stdout, process.stderr)):
            if raw is None:
                continue
            if fd == _STDIN:
                connect, protocol = loop.connect_write_pipe, _WritePipeProtocol
            else:
                connect, protocol = loop.connect_read_pipe, _ReadPipeProtocol
            pipe = protocol(self, fd)
            await connect(lambda pipe=pipe: pipe, raw)
            self._pipes[fd] = pipe
        waiter = loop.create_future()
        loop.call_soon(self._begin, waiter)
        await waiter

    def _give_up(self) -> None:
        """Undo a half-made connection: pipes closed, child killed."""
        # Its pipes may never be connected, so nobody can wait for their end.
        self._abandoned = True
        self.close()
        process = self._proc
        if process is not None:
            for fd, raw in enumerate((process.stdin, process.stdout, process.stderr)):
                if raw is not None and self._pipes.get(fd) is None:
                    raw.close()

    def _begin(self, waiter: asyncio.Future[None]) -> None:
        pending = self._pending
        if pending is None:
            return
        pending.appendleft((self._protocol.connection_made, (self,)))
        self._replay(waiter)

    def _replay(self, waiter: asyncio.Future[None]) -> None:
        pending = self._pending
        loop = self._loop
        try:
            while pending:
                callback, args = pending.popleft()
                self._deliver(callback, args)
        except BaseException:
            # Only exit and interrupt come here; what is left follows if the loop
            # is run again.
            loop.call_soon(self._replay, waiter)
            raise
        self._pending = None
        _set_result_unless_cancelled(waiter, None)

    def _call(self, callback: Callable[..., Any], *args: Any) -> None:
        if self._pending is None:
            self._deliver(callback, args)
        else:
            self._pending.append((callback, args))

    def _deliver(self, callback: Callable[..., Any], args: Any) -> None:
        # Called from pipe transports and from the pidfd's reader: a failing protocol
        # is reported as a failing callback is, and must not fail those.
        loop = self._loop
        try:
            callback(*args)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            loop.call_exception_handler(
                {
                    "message": f"Exception in callback {callback!r}",
                    "exception": exc,
                    "transport": self,
                    "protocol": getattr(callback, "__self__", None),
                }
            )

    def _pipe_data_received(self, fd: int, data: bytes) -> None:
        if self._protocol is not None:
            self._call(self._protocol.pipe_data_received, fd, data)

    def _pipe_connection_lost(self, fd: int, exc: BaseException | None) -> None:
        if self._protocol is not None:
            self._call(self._protocol.pipe_connection_lost, fd, exc)
            self._try_finish()

    def _process_exited(self, returncode: int) -> None:
        loop = self._loop
        process = self._proc
        assert process is not None
        loop._child_watches.pop(self._pid, None)
        if loop.get_debug():
            logger.info("%r exited with return code %r", self, returncode)
        self._returncode = returncode
        if process.returncode is None:
            # Tells Popen that there is nothing left to wait for.
            process.returncode = returncode
        self._call(self._protocol.process_exited)
        self._try_finish()
        if _WAIT_ENDS_AT_EXIT or self._abandoned:
            self._wake_waiters()

    def _wake_waiters(self) -> None:
        for waiter in self._exit_waiters:
            if not waiter.done():
                waiter.set_result(self._returncode)

    def _try_finish(self) -> None:
        if self._finished or self._returncode is None:
            return
        if all(p is not None and p.disconnected for p in self._pipes.values()):
            self._finished = True
            self._call(self._end)

    def _end(self) -> None:
        try:
            self._protocol.connection_lost(None)
        finally:
            self._wake_waiters()
            self._loop = None
            self._proc = None
            self._watch = None
            self._protocol = None


def _is_alive(process: subprocess.Popen[bytes]) -> bool:
    """Tell whether a child still runs, without reaping it."""
    if process.returncode is not None:
        return False
    try:
        exited = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False  # reaped elsewhere: the pid may be anybody's by now
    return exited is None
