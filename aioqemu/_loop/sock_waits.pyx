"""LoopSockWaits: waiting until a socket of the caller's is readable, and taking what came.

A task that receives in a loop waits for the same socket again and again.  So what watches
the fd is kept after the wait, idle: an idle watch belongs to nobody, and to the first who
wants the fd.  It ends when data comes that nobody waits for, when its number is watched
anew, or for the wait of another socket object.

On epoll the fd stays registered meanwhile, which saves two system calls a wait.  A socket
whose file was exchanged below it (dup2) would wait for ever, so what waits on trust is
told to the kernel again after DOUBT_NS.  On a ring nothing may stay: a request holds the
file, and closing the socket would not close the connection.
"""

from asyncio import InvalidStateError as _InvalidStateError
from weakref import ref as _weakref

import cython

from cpython.object cimport PyObject
from cpython.object cimport PyTypeObject
from cpython.ref cimport Py_INCREF

from aioqemu._engine.types cimport AIO_OWNER_LOOP
from aioqemu._engine.types cimport AIO_OWNER_TRANSPORT
from aioqemu._engine.types cimport AioHandler
from aioqemu._engine.types cimport TIMER_IDLE
from aioqemu._loop.fds cimport FdWatch
from aioqemu._loop.fds cimport LoopFds
from aioqemu._loop.reader cimport thrown
from aioqemu._sys.classes cimport refuse_new
from aioqemu._sys.iterators cimport PYGEN_NEXT
from aioqemu._sys.iterators cimport PYGEN_RETURN
from aioqemu._sys.iterators cimport aq_set_next
from aioqemu._sys.iterators cimport aq_stop_iteration
from aioqemu._sys.iterators cimport iternextfunc
from aioqemu._sys.iterators cimport sendfunc
from aioqemu._sys.libc cimport POLLIN
from aioqemu._sys.libc cimport aq_now_ns

cdef enum:
    DOUBT_NS = 50000000       # a wait on trust is looked after so much later


cdef int _on_readable(FdWatch watch) except -1:
    cdef LoopSockWaits loop = <LoopSockWaits>watch.loop
    cdef Taking taking
    reader = watch.reader
    if reader is None:
        return loop._drop_idle(watch.node)      # nobody waits for what has come
    if loop.context.mon.one_shot:
        watch.node.events &= ~<unsigned>POLLIN  # one wait, one request
    loop.callbacks += 1
    taking = <Taking>reader
    if not taking.woken:
        try:
            taking.waiter.set_result(None)
        except _InvalidStateError:
            pass        # cancelled: its task will hear of that
        else:
            taking.woken = True
    return 0


cdef int _verify(void *opaque) except -1:
    """Tell the kernel once more what those watch who have waited on trust for long."""
    cdef LoopSockWaits loop = <LoopSockWaits>opaque
    cdef list doubtful = loop.doubtful
    cdef FdWatch watch
    loop.doubtful = []
    for watch in doubtful:
        watch.doubted = False
        if watch.node == NULL or watch.idle or watch.reader is None or loop.in_child():
            continue
        if watch.waits != watch.doubted_at:
            loop._doubt(watch)          # another wait by now
        else:
            watch.node.armed = 0
            loop.context.mon.update(watch.node)
    return 0


cdef PyObject *_taking_next(PyObject *op) except? NULL:
    cdef Taking self = <Taking>op
    cdef object result
    if self._advance():
        Py_INCREF(self.waiter)
        return <PyObject *>self.waiter
    result = self.result
    self.result = None
    if result is not None:
        aq_stop_iteration(result)
    return NULL


cdef int _taking_send(PyObject *op, PyObject *_value, PyObject **out) except -1:
    # -1, with the exception set, is PYGEN_ERROR.
    cdef Taking self = <Taking>op
    cdef object found
    cdef bint waits
    out[0] = NULL
    waits = self._advance()
    found = self.waiter if waits else self.result
    if not waits:
        self.result = None
    Py_INCREF(found)
    out[0] = <PyObject *>found
    return PYGEN_NEXT if waits else PYGEN_RETURN


@cython.final
@cython.freelist(64)
cdef class Taking:
    """What `sock_recv` and its like await when there is nothing yet."""

    def __await__(self):
        return self

    def __iter__(self):
        return self

    def __next__(self):
        # What `await` calls are the functions above; this is for who asks for it by name.
        if self._advance():
            return self.waiter
        raise StopIteration(self.result)

    def throw(self, type_, value=None, traceback=None):
        """End it with an exception; nothing has been taken."""
        self._leave(False, False)
        raise thrown(type_, value, traceback)

    def close(self):
        """Give it up."""
        self._leave(False, False)

    def cancel(self):
        """Somebody else watches the fd now, as one who adds a reader would: wait on."""

    cdef int _leave(self, bint again, bint short) except -1:
        """It is over: nobody is to wake it."""
        cdef LoopSockWaits loop = self.loop
        cdef bint watched = self.state == TAKE_WAITING
        self.state = TAKE_OVER
        self.loop = None
        if watched:
            loop._unwatch_sock(self, again, short)
        self.waiter = self.take = self.args = self.sock = None
        return 0

    cdef int _wait(self) except -1:
        cdef LoopSockWaits loop = self.loop
        self.fd = self.sock.fileno()
        loop.refuse_transport(self.fd)
        self.waiter = loop.create_future()
        self.waiter._asyncio_future_blocking = True
        loop._watch_sock(self)
        self.state = TAKE_WAITING
        return 0

    cdef bint _advance(self) except -1:
        cdef bint short = False
        if self.state == TAKE_OVER:
            raise RuntimeError("cannot reuse already awaited coroutine")
        if self.state == TAKE_NEW:
            self._wait()
            return True
        if self.woken:
            self.woken = False
        else:
            try:
                if not self.waiter.done():
                    raise RuntimeError("await wasn't used with future")
                self.waiter.result()
            except BaseException:
                self._leave(False, False)
                raise
        try:
            self.result = self.take(*self.args)
        except (BlockingIOError, InterruptedError):
            # Somebody else has taken it.
            self.state = TAKE_NEW
            self.loop._unwatch_sock(self, True, False)
            self._wait()
            return True
        except BaseException:
            self._leave(True, False)
            raise
        if self.most:
            result = self.result
            short = (result if type(result) is int else len(result)) < self.most
        self._leave(True, short)
        return False


cdef class LoopSockWaits(LoopFds):
    """The part of a loop that waits for sockets of the caller's."""

    def __cinit__(self, *args, **kwargs):
        self.doubtful = []
        self.doubt_timer.index = TIMER_IDLE
        self.doubt_timer.cb = _verify
        self.doubt_timer.opaque = <void *>self

    def _taking(self, sock, Py_ssize_t most, take, *args):
        """An awaitable: wait until the socket is readable, then return `take(*args)`.

        What that gives, bytes or a number of them, is all there was if it is less than
        `most`; with 0 it says nothing.
        """
        cdef Taking taking = Taking.__new__(Taking)
        taking.loop = self
        taking.sock = sock
        taking.most = most
        taking.take = take
        taking.args = args
        return taking

    def _set_ready(self, future):
        """End a wait for room, unless it has ended or who waited has gone."""
        if not future.done():
            future.set_result(None)

    def _is_drained(self, sock):
        """Whether to receive now would most likely be for nothing; asks no kernel.

        So it is where the last receive got less than it could have, or where each had
        to wait; every eighth of the latter is tried, to see whether that is still so.
        """
        cdef AioHandler *node
        cdef FdWatch watch
        if self.context.closed:
            return False
        node = self.context.lookup(sock.fileno())
        if node == NULL or node.owner != AIO_OWNER_TRANSPORT or node.queued:
            return False
        opaque = <object>node.opaque
        if type(opaque) is not FdWatch:
            return False
        watch = <FdWatch>opaque
        watch.tries += 1
        return watch.idle and watch.sock() is sock and (
            watch.short or watch.in_turn and watch.waits & 7)

    cdef int _watch_sock(self, Taking taking) except -1:
        cdef AioHandler *node
        cdef FdWatch watch
        self._check_closed_()
        if self.in_child():
            self._renew()
        node = self.context.lookup(taking.fd)
        if node != NULL and node.owner == AIO_OWNER_TRANSPORT:
            opaque = <object>node.opaque
            if type(opaque) is FdWatch and (<FdWatch>opaque).idle:
                watch = <FdWatch>opaque
                if watch.sock() is taking.sock and not node.queued:
                    if self.context.mon.one_shot:
                        self.context.modify(node, POLLIN)
                    node.owner = AIO_OWNER_LOOP
                    watch.idle = False
                    watch.reader = taking
                    watch.waits += 1
                    watch.in_turn = watch.tries <= 1    # one wait for each receive
                    watch.tries = 0
                    if self.trusts and not watch.doubted:
                        self._doubt(watch)
                    return 0
        self._set_watch(taking.fd, False, taking, _on_readable)
        return 0

    cdef int _unwatch_sock(self, Taking taking, bint again, bint short) except -1:
        """End a wait; `again` if the next may well be for the same socket."""
        cdef AioHandler *node
        cdef FdWatch watch
        if self.closed:
            return 0
        node = self.context.lookup(taking.fd)
        if node == NULL or node.owner != AIO_OWNER_LOOP:
            return 0
        watch = <FdWatch>node.opaque
        if watch.reader is not taking:
            return 0    # somebody else's by now, perhaps under its next owner
        if (again and watch.writer is None and not node.queued and not self.in_child()
                and (not self.context.mon.one_shot or node.armed == 0)
                and taking.sock.fileno() == taking.fd):
            if watch.sock is None or watch.sock() is not taking.sock:
                try:
                    watch.sock = _weakref(taking.sock)
                except TypeError:
                    watch.sock = None
            if watch.sock is not None:
                if self.context.mon.one_shot:
                    self.context.modify(node, 0)
                watch.reader = None
                watch.idle = True
                watch.short = short
                node.owner = AIO_OWNER_TRANSPORT
                return 0
        self._drop_watch(taking.fd, False)
        return 0

    cdef int _doubt(self, FdWatch watch) except -1:
        watch.doubted = True
        watch.doubted_at = watch.waits
        self.doubtful.append(watch)
        if self.doubt_timer.index == TIMER_IDLE:
            self.context.timers.arm(&self.doubt_timer, aq_now_ns() + DOUBT_NS)
        return 0


aq_set_next(<PyTypeObject *>Taking, <iternextfunc>_taking_next, <sendfunc>_taking_send)
refuse_new(<PyTypeObject *>Taking)
