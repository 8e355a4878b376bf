"""EventNotifier: QEMU's wake-up object.  Contract in notifier.pxd.

Knows no context; a context registers a notifier like any other fd.
"""

from libc.stdint cimport uint64_t

from aioqemu._sys.libc cimport EAGAIN
from aioqemu._sys.libc cimport EBADF
from aioqemu._sys.libc cimport EFD_CLOEXEC
from aioqemu._sys.libc cimport EFD_NONBLOCK
from aioqemu._sys.libc cimport EINTR
from aioqemu._sys.libc cimport O_CLOEXEC
from aioqemu._sys.libc cimport O_NONBLOCK
from aioqemu._sys.libc cimport close
from aioqemu._sys.libc cimport errno
from aioqemu._sys.libc cimport eventfd
from aioqemu._sys.libc cimport pipe2
from aioqemu._sys.libc cimport read
from aioqemu._sys.libc cimport write

from aioqemu._engine import unclosed

cdef object _warn_unclosed = unclosed.warn_unclosed


cdef int notifier_init(int fds[2], bint active) noexcept nogil:
    cdef int fd = eventfd(1 if active else 0, EFD_NONBLOCK | EFD_CLOEXEC)
    if fd >= 0:
        fds[0] = fd
        fds[1] = fd
        return 0
    # No eventfd (an old kernel, a filter): a pipe does the same with two fds.
    if pipe2(fds, O_NONBLOCK | O_CLOEXEC) != 0:
        return -errno
    if active:
        return notifier_set(fds[1])
    return 0


cdef int notifier_set(int fd) noexcept nogil:
    cdef uint64_t one = 1
    while write(fd, &one, sizeof(one)) < 0:
        if errno == EAGAIN:   # saturated: it is set as much as it can be
            return 0
        if errno != EINTR:
            return -errno
    return 0


cdef bint notifier_clear(int fd) noexcept nogil:
    cdef char buffer[512]
    cdef ssize_t n
    cdef bint was_set = False
    while True:
        n = read(fd, buffer, sizeof(buffer))
        if n < 0 and errno == EINTR:
            continue
        if n > 0:
            was_set = True
        # An eventfd gives all it has in one read; a full buffer means a pipe with more.
        if n < <ssize_t>sizeof(buffer):
            return was_set


cdef class EventNotifier:
    """A wake-up object (QEMU's `EventNotifier`).

    `set` and `test_and_clear` may be called from any thread.

    Args:
        active: whether it starts set.

    Raises:
        OSError: no file descriptor could be had.
    """

    def __cinit__(self, active=False):
        cdef int fds[2]
        cdef int err
        self.rfd = -1
        self.wfd = -1
        err = notifier_init(fds, bool(active))
        if err < 0:
            raise OSError(-err, "cannot create an event notifier")
        self.rfd = fds[0]
        self.wfd = fds[1]

    def __del__(self):
        if self.rfd >= 0:
            try:
                if _warn_unclosed is not None:   # else the interpreter goes down
                    _warn_unclosed(f"unclosed {self!r}", self)
            finally:
                self.close()    # the warning may be an error

    def __repr__(self):
        state = "closed" if self.rfd < 0 else f"fd={self.rfd}"
        return f"<EventNotifier {state}>"

    def set(self):
        """Make the fd readable (`event_notifier_set`).

        Raises:
            OSError: EBADF after close.
        """
        cdef int err
        if self.wfd < 0:
            raise OSError(EBADF, "the event notifier is closed")
        err = notifier_set(self.wfd)
        if err < 0:
            raise OSError(-err, "cannot set the event notifier")

    def test_and_clear(self):
        """Drain the fd; tell whether it had been set (`event_notifier_test_and_clear`).

        False after close.
        """
        if self.rfd < 0:
            return False
        return notifier_clear(self.rfd)

    def fileno(self):
        """The fd to watch for reading, -1 after close (`event_notifier_get_fd`)."""
        return self.rfd

    def close(self):
        """Close the fd (`event_notifier_cleanup`); twice does nothing."""
        cdef int rfd = self.rfd
        cdef int wfd = self.wfd
        self.rfd = -1
        self.wfd = -1
        if rfd >= 0:
            close(rfd)
        if wfd >= 0 and wfd != rfd:
            close(wfd)
