"""A non-blocking pipe whose two ends a test may close one by one."""

from __future__ import annotations

import os
from contextlib import suppress


class Pipe:
    """A pipe; ``r`` and ``w`` are its descriptors, -1 once closed."""

    def __init__(self) -> None:
        self.r, self.w = os.pipe()
        os.set_blocking(self.r, False)
        os.set_blocking(self.w, False)

    def feed(self, data: bytes = b"x") -> None:
        """Make the read end readable."""
        os.write(self.w, data)

    def drain(self) -> bytes:
        """Take everything that is in the pipe."""
        with suppress(BlockingIOError):
            return os.read(self.r, 1 << 16)
        return b""

    def fill(self) -> None:
        """Make the write end unwritable."""
        with suppress(BlockingIOError):
            while True:
                os.write(self.w, bytes(1 << 16))

    def close_r(self) -> None:
        """Close the read end, once."""
        fd, self.r = self.r, -1
        if fd >= 0:
            os.close(fd)

    def close_w(self) -> None:
        """Close the write end, once."""
        fd, self.w = self.w, -1
        if fd >= 0:
            os.close(fd)

    def close(self) -> None:
        """Close what is still open."""
        self.close_r()
        self.close_w()
