"""Subprocesses: subprocess_exec and subprocess_shell.

Here the options are checked and a child that could not be connected is given up; the
transport does the rest. It must never know how the end of a child is noticed.
"""

from __future__ import annotations

import asyncio
import subprocess
from typing import IO, TYPE_CHECKING, Any, TypeVar

from .child_transport import SubprocessTransport
from .private import logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._typing import LoopBase
    from .child_transport import Command
    from .children import ChildWatch
else:
    LoopBase = object

_ProtocolT = TypeVar("_ProtocolT", bound=asyncio.BaseProtocol)


class ProcessMixin(LoopBase):
    """``subprocess_exec`` and ``subprocess_shell`` of a loop."""

    _child_watches: dict[int, ChildWatch]

    def _init_process(self) -> None:
        self._child_watches = {}

    def _close_process(self) -> None:
        watches, self._child_watches = self._child_watches, {}
        for watch in watches.values():
            watch.close()

    async def subprocess_shell(
        self,
        protocol_factory: Callable[[], _ProtocolT],
        cmd: bytes | str,
        *,
        stdin: int | IO[Any] | None = subprocess.PIPE,
        stdout: int | IO[Any] | None = subprocess.PIPE,
        stderr: int | IO[Any] | None = subprocess.PIPE,
        universal_newlines: bool = False,
        shell: bool = True,
        bufsize: int = 0,
        encoding: None = None,
        errors: None = None,
        text: bool | None = None,
        **kwargs: Any,
    ) -> tuple[SubprocessTransport, _ProtocolT]:
        """Run a shell command as a child process.

        Args:
            protocol_factory: Makes the protocol (``asyncio.SubprocessProtocol``).
            cmd: The command line.
            stdin: As for ``subprocess.Popen``; likewise ``stdout`` and ``stderr``.
            stdout: See ``stdin``.
            stderr: See ``stdin``.
            universal_newlines: Must be False: pipes carry bytes.
            shell: Must be True.
            bufsize: Must be 0.
            encoding: Must be None.
            errors: Must be None.
            text: Must be false.
            kwargs: Passed to ``subprocess.Popen``.

        Returns:
            Transport and protocol; ``connection_made`` has been called.

        Raises:
            ValueError: ``cmd`` is no string, or an option is not as it must be.
            OSError: The process cannot be made.
        """
        if not isinstance(cmd, (bytes, str)):
            raise ValueError("cmd must be a string")
        _check_options(universal_newlines, shell, True, bufsize, text, encoding, errors)
        protocol = protocol_factory()
        # The command may hold secrets; it is logged in debug mode only.
        what = f"run shell command {cmd!r}" if self._debug else ""
        transport = await self._run_subprocess(
            what, protocol, cmd, True, stdin, stdout, stderr, bufsize, **kwargs
        )
        return transport, protocol

    async def subprocess_exec(
        self,
        protocol_factory: Callable[[], _ProtocolT],
        program: Any,
        *args: Any,
        stdin: int | IO[Any] | None = subprocess.PIPE,
        stdout: int | IO[Any] | None = subprocess.PIPE,
        stderr: int | IO[Any] | None = subprocess.PIPE,
        universal_newlines: bool = False,
        shell: bool = False,
        bufsize: int = 0,
        encoding: None = None,
        errors: None = None,
        text: bool | None = None,
        **kwargs: Any,
    ) -> tuple[SubprocessTransport, _ProtocolT]:
        """Run a program as a child process.

        Args:
            protocol_factory: Makes the protocol (``asyncio.SubprocessProtocol``).
            program: The program.
            args: Its arguments.
            stdin: As for ``subprocess.Popen``; likewise ``stdout`` and ``stderr``.
            stdout: See ``stdin``.
            stderr: See ``stdin``.
            universal_newlines: Must be False: pipes carry bytes.
            shell: Must be False.
            bufsize: Must be 0.
            encoding: Must be None.
            errors: Must be None.
            text: Must be false.
            kwargs: Passed to ``subprocess.Popen``.

        Returns:
            Transport and protocol; ``connection_made`` has been called.

        Raises:
            ValueError: An option is not as it must be.
            OSError: The process cannot be made.
        """
        _check_options(
            universal_newlines, shell, False, bufsize, text, encoding, errors
        )
        protocol = protocol_factory()
        # The arguments may hold secrets and be long: they are not logged.
        what = f"execute program {program!r}" if self._debug else ""
        command = (program, *args)
        transport = await self._run_subprocess(
            what, protocol, command, False, stdin, stdout, stderr, bufsize, **kwargs
        )
        return transport, protocol

    async def _run_subprocess(
        self,
        what: str,
        protocol: Any,
        args: Command,
        shell: bool,
        stdin: Any,
        stdout: Any,
        stderr: Any,
        bufsize: int,
        **kwargs: Any,
    ) -> SubprocessTransport:
        if what:
            logger.debug(_describe(what, stdin, stdout, stderr))
        transport = await self._make_subprocess_transport(
            protocol, args, shell, stdin, stdout, stderr, bufsize, **kwargs
        )
        if what:
            logger.info("%s: %r", what, transport)
        return transport

    async def _make_subprocess_transport(
        self,
        protocol: Any,
        args: Command,
        shell: bool,
        stdin: Any,
        stdout: Any,
        stderr: Any,
        bufsize: int,
        extra: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> SubprocessTransport:
        transport = SubprocessTransport(
            self, protocol, args, shell, stdin, stdout, stderr, bufsize, extra, **kwargs
        )
        try:
            await transport._connect_pipes()
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException:
            transport._give_up()
            # Cancelled once more here, the watch still reaps the child.
            await transport._wait()
            raise
        return transport


def _check_options(
    universal_newlines: bool,
    shell: bool,
    shell_wanted: bool,
    bufsize: int,
    text: bool | None,
    encoding: None,
    errors: None,
) -> None:
    if universal_newlines:
        raise ValueError("universal_newlines must be False")
    if bool(shell) != shell_wanted:
        raise ValueError(f"shell must be {shell_wanted}")
    if bufsize != 0:
        raise ValueError("bufsize must be 0")
    if text:
        raise ValueError("text must be False")
    if encoding is not None:
        raise ValueError("encoding must be None")
    if errors is not None:
        raise ValueError("errors must be None")


def _describe(what: str, stdin: Any, stdout: Any, stderr: Any) -> str:
    info = [what]
    if stdin is not None:
        info.append(f"stdin={_pipe_name(stdin)}")
    if stdout is not None and stderr == subprocess.STDOUT:
        info.append(f"stdout=stderr={_pipe_name(stdout)}")
    else:
        if stdout is not None:
            info.append(f"stdout={_pipe_name(stdout)}")
        if stderr is not None:
            info.append(f"stderr={_pipe_name(stderr)}")
    return " ".join(info)


def _pipe_name(what: Any) -> str:
    if what == subprocess.PIPE:
        return "<pipe>"
    if what == subprocess.STDOUT:
        return "<stdout>"
    return repr(what)
