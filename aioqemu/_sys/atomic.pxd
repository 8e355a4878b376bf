"""C11 atomics of the notify protocol: an int shared by threads without the GIL."""

cdef extern from *:
    """
    #include <stdatomic.h>
    typedef _Atomic int aq_atomic_int;
    static inline int aq_load(aq_atomic_int *p) { return atomic_load(p); }
    static inline void aq_store(aq_atomic_int *p, int v) { atomic_store(p, v); }
    static inline int aq_exchange(aq_atomic_int *p, int v)
    { return atomic_exchange(p, v); }
    static inline int aq_add(aq_atomic_int *p, int v) { return atomic_fetch_add(p, v); }
    static inline void aq_pause(void)
    {
    #if defined(__x86_64__) || defined(__i386__)
        __builtin_ia32_pause();
    #endif
    }
    static inline void aq_prefetch(const void *p) { __builtin_prefetch(p, 1); }
    """
    ctypedef int aq_atomic_int
    int aq_load(aq_atomic_int *p) noexcept nogil
    void aq_store(aq_atomic_int *p, int v) noexcept nogil
    int aq_exchange(aq_atomic_int *p, int v) noexcept nogil
    int aq_add(aq_atomic_int *p, int v) noexcept nogil      # what it was
    void aq_pause() noexcept nogil
    # Have memory that is about to be written fetched; any address will do.
    void aq_prefetch(const void *p) noexcept nogil
