"""Source text that forbids system calls in the process that runs it.

A filter cannot be taken back, so it is for scripts (``support.procs``) only. The
program is classic BPF, installed with ``prctl``; it answers a chosen errno to the
chosen calls and allows the rest, which is what container profiles do.
"""

from __future__ import annotations

import ctypes
import platform
import struct

# Numbers of the io_uring calls; the same on every architecture Linux has them on.
IO_URING_SETUP, IO_URING_ENTER, IO_URING_REGISTER = 425, 426, 427

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _MODE_FILTER = 38, 22, 2
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_EVENTFD2 = {"x86_64": 290, "aarch64": 19}
EVENTFD = _EVENTFD2.get(platform.machine())


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def deny(numbers: tuple[int, ...], errno: int) -> None:
    """Make the system calls ``numbers`` fail with ``errno`` from now on.

    Raises:
        OSError: The kernel takes no filter.
    """
    code = [struct.pack("=HBBI", _LOAD, 0, 0, 0)]
    for number in numbers:
        code.append(struct.pack("=HBBI", _JUMP_IF_EQUAL, 0, 1, number))
        code.append(struct.pack("=HBBI", _RETURN, 0, 0, _ERRNO | errno))
    code.append(struct.pack("=HBBI", _RETURN, 0, 0, _ALLOW))
    text = ctypes.create_string_buffer(b"".join(code))
    program = _Program(len(code), ctypes.addressof(text))
    libc = ctypes.CDLL(None, use_errno=True)
    for call in (
        (_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(program), 0, 0),
    ):
        if libc.prctl(*call) != 0:
            raise OSError(ctypes.get_errno(), "the kernel takes no filter")
