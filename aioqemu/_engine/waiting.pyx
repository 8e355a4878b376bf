"""AioWaiting: how long a context may sleep, and what it does before and while it sleeps.

Contracts in waiting.pxd.  This is the only place where the GIL is let go for an event.
Before that a wait may look with the GIL kept (what is there already, or an event that will
come before a thread that computes gives the GIL back) and, without it, poll for a while.
"""

from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int64_t

from aioqemu._engine.core cimport AioCore
from aioqemu._sys.atomic cimport aq_load
from aioqemu._sys.atomic cimport aq_pause
from aioqemu._sys.atomic cimport aq_store
from aioqemu._sys.libc cimport EEXIST
from aioqemu._sys.libc cimport EINTR
from aioqemu._sys.libc cimport aq_now_ns
from aioqemu._sys.libc cimport sched_yield

cdef enum:
    IDLE_NS = 10000000          # how long idle bottom halves may wait
    POLL_START_NS = 4000        # first adaptive polling interval
    CONTENDED_NS = 1000000      # so long for the GIL: another thread computes
    HELD_LONGEST_NS = 50000000  # then the GIL is let go, whatever comes
    CONTENDED_SAMPLE = 8        # of so many waits, one looks how long the GIL took
    CONTENDED_WAITS = 4         # looks that may fail before that is over
    LOOKS_WRONG_MAX = 64        # at least one wait of so many looks first

cdef int64_t MAX_TIMEOUT_NS = 0x7fffffff * <int64_t>1000000


cdef class AioWaiting(AioCore):
    """The part of a context that waits."""

    cdef int64_t compute_timeout(self) noexcept:
        # What only the loop's own pass dispatches keeps no poll() from sleeping.
        if self.st.ready_loop.head != NULL or self.st.ready_transport.head != NULL:
            return 0
        return self._own_timeout()

    cdef int64_t _own_timeout(self) noexcept:
        cdef int64_t timeout = -1
        cdef int64_t left, now
        if self.bh_urgent or self.st.done_head != NULL or (
                self.st.ready_context.head != NULL):
            return 0
        if self.bh_idle:
            timeout = IDLE_NS
        if self.timers.due_left:
            return 0
        if self.timers.length:
            left = self.timers.entries[0].deadline_ns
            now = aq_now_ns()
            if left <= now:
                return 0
            left -= now         # not before: a deadline may be far below zero
            if left > MAX_TIMEOUT_NS:
                left = MAX_TIMEOUT_NS
            if timeout < 0 or left < timeout:
                timeout = left
        return timeout

    cdef bint _start_monitor(self) except -1:
        if self.mon_thread == self.home:
            return False
        self.mon_thread = 0     # should it fail
        self.mon.start()
        self.mon_thread = self.home
        return True

    cdef int wait(self, int64_t timeout_ns) except -1:
        cdef int err, found
        cdef int64_t spun_ns = self.spun_ns
        self.spun_ns = 0
        self.check_usable()     # a callback of the loop may have closed it, or forked
        if self.mon_thread == 0 and timeout_ns == 0 and self.service is None and (
                self.n_fds == 1):
            # The notifier alone, and what it has to say is in `notified` as well.  A loop
            # that only runs callbacks never makes what may be dear, such as a ring.
            return 0
        if self._start_monitor():
            timeout_ns = 0      # it may have let the GIL go
        if self.service is not None:
            self.service.submit()
            if self.st.done_head != NULL:
                timeout_ns = 0
        err = found = self.mon.prepare()
        if found >= 0:
            self.counts.waits += 1
            if timeout_ns != 0 and not aq_load(&self.notified):
                err = self._look_first(found)
                if err == 0:
                    err = self._sleep(timeout_ns, found, spun_ns)
            else:
                err = self.mon.wait(0)
        self.mon.collect()
        if err < 0:
            if err == -EEXIST:
                # A thread of the same ident, but another one: the ring is not its.
                self.mon_thread = 0
                self._start_monitor()
            elif err != -EINTR:
                raise OSError(-err, f"the {self.mon.name} backend has failed")
            PyErr_CheckSignals()
        return 0

    cdef int _look_first(self, int found) noexcept:
        """Look with the GIL kept, where there will most likely be something.

        Letting the GIL go and taking it again costs as much as a look, which a busy loop
        can save: its last waits returned at once.  Threads that want the GIL get it when
        `hold_gil_ns` are over.

        Returns:
            More than 0: there is something to collect, or -errno.
        """
        cdef int err
        if self.released_ns < 0:
            self.released_ns = self.now_ns      # what was the time after that wait
        if self.contended or self.now_ns - self.released_ns >= self.hold_gil_ns:
            return 0
        if found == 0:
            if self.mon.one_shot or self.poll_max_ns:
                return 0    # a ring is entered once; and who polls looks often anyway
            if self.looks_off:
                self.looks_off -= 1
                return 0
        err = self.mon.wait(0)
        if err < 0:
            return err
        if found or err:
            self.looks_wrong >>= 1
            return 1
        self.looks_wrong = min(4 * self.looks_wrong + 1, LOOKS_WRONG_MAX)
        self.looks_off = self.looks_wrong
        return 0

    cdef int _sleep(self, int64_t timeout_ns, int found, int64_t spun_ns) noexcept:
        """Wait without the GIL; if something was found already, only look.

        Having looked in vain for a while it returns, as if nothing were to be waited for:
        signals make no look fail. Who calls it lets their handlers run, and asks again.
        """
        cdef int err = 0
        cdef int64_t began = 0
        cdef int64_t woke = 0
        cdef bint adaptive = self.poll_max_ns != 0
        cdef bint measured
        # Announce, then look: pairs with wake().
        aq_store(&self.notify_me, 1)
        if found or aq_load(&self.notified):
            timeout_ns = 0
        elif self.contended and spun_ns == 0:
            began = aq_now_ns()
            err = self._look_with_gil(timeout_ns)
            if err == 0:
                self.spun_ns = began
        if err == 0 and self.spun_ns == 0:
            measured = self.hold_gil_ns != 0 and (
                self.contended != 0 or self.counts.gil_releases % CONTENDED_SAMPLE == 0)
            if adaptive:
                began = spun_ns if spun_ns else aq_now_ns()
            self.counts.gil_releases += 1
            self.released_ns = -1
            self.mon.waiting = True
            with nogil:
                if self.poll_ns and timeout_ns != 0 and spun_ns == 0:
                    err = self._spin(timeout_ns, self.poll_ns)
                    if err == 0:
                        self.spun_ns = began
                else:
                    err = self.mon.wait(timeout_ns)
                if measured:
                    woke = aq_now_ns()
            self.mon.waiting = False
            if measured:
                self.taken_ns = aq_now_ns()
                if self.taken_ns - woke > CONTENDED_NS:
                    self.contended = CONTENDED_WAITS
                elif self.contended:
                    # The thread was not quick enough this time, or has ended.
                    self.contended -= 1
            if adaptive and self.spun_ns == 0:
                self._adjust_polling(aq_now_ns() - began)
        aq_store(&self.notify_me, 0)
        return err

    cdef int _spin(self, int64_t timeout_ns, int64_t longest_ns) noexcept nogil:
        """Look again and again; not 0 if there is something to collect, or -errno."""
        cdef int64_t start, end, now
        cdef int found
        cdef int _i
        if longest_ns == 0:
            return 0
        start = aq_now_ns()
        end = start + (longest_ns if timeout_ns < 0 or longest_ns < timeout_ns
                       else timeout_ns)
        while True:
            # On a ring this is a call only if something was prepared, or is to be fetched;
            # there only memory tells whether there is something.
            found = self.mon.wait(0)
            if found == 0 and (aq_load(&self.notified) or self.mon.has_work()):
                found = 1
            now = aq_now_ns()
            if found or now >= end:
                self.counts.polled_ns += now - start
                return found
            # Who was just written to may be queued on this very core.
            sched_yield()
            for _i in range(32):
                if aq_load(&self.notified) or self.mon.has_work():
                    break
                aq_pause()

    cdef int _look_with_gil(self, int64_t timeout_ns) noexcept:
        """Wait a little without letting the GIL go, while another thread computes.

        Such a thread has the GIL the moment it is let go, and gives it back after the
        switch interval, 5 ms: an event that comes 20 us later waits for all of it.  Looks
        that find nothing are followed by such an interval, or soon by no more looks, so
        they cost little of the other thread's time.
        """
        if aq_now_ns() - self.taken_ns > HELD_LONGEST_NS:
            return 0        # Python code gives it away in time, native callbacks do not
        self.counts.gil_holds += 1
        return self._spin(timeout_ns, self.hold_gil_ns)

    cdef void _adjust_polling(self, int64_t blocked_ns) noexcept:
        # QEMU's rule: long sleeps make polling pointless, short ones just beyond the
        # present interval make it worth extending.
        if blocked_ns <= self.poll_ns:
            return
        if blocked_ns > self.poll_max_ns:
            self.poll_ns = self.poll_ns // self.poll_shrink if self.poll_shrink else 0
        elif self.poll_ns < self.poll_max_ns:
            if self.poll_ns == 0:
                self.poll_ns = POLL_START_NS
            else:
                self.poll_ns *= self.poll_grow if self.poll_grow else 2
            if self.poll_ns > self.poll_max_ns:
                self.poll_ns = self.poll_max_ns
