/* Load generator of the benchmarks: many connections, one message in flight on each.
 *
 * One thread on epoll; it must stay cheaper than any server it drives. It reads the
 * server's CPU clock itself, at the instants at which it reads its own counters, so
 * that "CPU time per message" covers exactly the measured window. Prints one JSON
 * object. It knows nothing of Python, of event loops or of how rows are defined.
 *
 * cc -O2 echo_client.c            TCP, Unix and UDP
 * cc -O2 -DWITH_TLS echo_client.c -lssl -lcrypto
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>
#ifdef WITH_TLS
#include <openssl/err.h>
#include <openssl/ssl.h>
#endif

#define SUB_BITS 6 /* 64 sub-buckets per power of two: values within 1.6 % */
#define SUB (1u << SUB_BITS)
#define BUCKETS (64u * SUB)
#define BATCH 256
#define STALL_NS 5000000000ull
#define RESEND_NS 200000000ull

enum transport { TCP, UNIX, UDP, TLS };
enum mode { ECHO, ACCEPT };

struct conn {
    int fd;
    bool want_write;
    uint64_t seq;
    uint64_t sent_at;
    size_t out_done;
    size_t in_done;
    char *message;
    char head[8]; /* first bytes of what came back: the sequence number */
#ifdef WITH_TLS
    SSL *ssl;
#endif
};

static struct {
    enum transport transport;
    enum mode mode;
    const char *host, *path;
    int port, connections, cpu;
    pid_t server;
    size_t size;
    uint64_t warmup_ns, duration_ns;
} opt = {
    .host = "127.0.0.1",
    .connections = 100,
    .cpu = -1,
    .size = 1000,
    .warmup_ns = 200000000ull,
    .duration_ns = 1000000000ull,
};

static uint64_t histogram[BUCKETS];
static uint64_t messages, lost, latency_sum, latency_max;
static char *scratch;
static size_t scratch_size;
static int epfd;
static struct sockaddr_storage server_addr;
static socklen_t server_len;
#ifdef WITH_TLS
static SSL_CTX *tls_ctx;
#endif

static void json_error(const char *text)
{
    fputs("{\"error\": \"", stdout);
    for (; *text; text++) {
        if (*text == '"' || *text == '\\') {
            fputc('\\', stdout);
        }
        if ((unsigned char)*text >= 0x20) {
            fputc(*text, stdout);
        }
    }
    fputs("\"}\n", stdout);
    fflush(stdout);
}

__attribute__((noreturn, format(printf, 1, 2))) static void die(const char *fmt, ...)
{
    char text[400];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    json_error(text);
    exit(1);
}

static uint64_t read_clock(clockid_t id)
{
    struct timespec ts;

    if (clock_gettime(id, &ts) != 0) {
        die("clock %d: %s (has the server gone?)", (int)id, strerror(errno));
    }
    return (uint64_t)ts.tv_sec * 1000000000ull + (uint64_t)ts.tv_nsec;
}

static uint64_t now_ns(void) { return read_clock(CLOCK_MONOTONIC); }

static unsigned bucket_of(uint64_t ns)
{
    unsigned shift;

    if (ns < SUB) {
        return (unsigned)ns;
    }
    shift = 63u - (unsigned)__builtin_clzll(ns) - SUB_BITS;
    return (shift + 1) * SUB + (unsigned)((ns >> shift) - SUB);
}

static double bucket_middle(unsigned index)
{
    unsigned shift;

    if (index < SUB) {
        return index;
    }
    shift = index / SUB - 1;
    return ((double)(index % SUB + SUB) + 0.5) * (double)(1ull << shift);
}

static double percentile_us(double share)
{
    uint64_t wanted = (uint64_t)((double)messages * share), seen = 0;

    for (unsigned i = 0; i < BUCKETS; i++) {
        seen += histogram[i];
        if (seen > wanted) {
            return bucket_middle(i) / 1000.0;
        }
    }
    return (double)latency_max / 1000.0;
}

static void record(uint64_t ns)
{
    histogram[bucket_of(ns)]++;
    messages++;
    latency_sum += ns;
    if (ns > latency_max) {
        latency_max = ns;
    }
}

static void watch(struct conn *c, int op, uint32_t events)
{
    struct epoll_event ev = {.events = events, .data.ptr = c};

    if (epoll_ctl(epfd, op, c->fd, &ev) != 0) {
        die("epoll_ctl: %s", strerror(errno));
    }
}

static void set_want_write(struct conn *c, bool want)
{
    if (want != c->want_write) {
        c->want_write = want;
        watch(c, EPOLL_CTL_MOD, EPOLLIN | (want ? EPOLLOUT : 0));
    }
}

/* One transfer; -1 with EAGAIN when it must wait. A peer that closes is an error:
 * an echo server has no reason to. */
static ssize_t conn_send(struct conn *c, const char *data, size_t n)
{
#ifdef WITH_TLS
    if (c->ssl) {
        int ret = SSL_write(c->ssl, data, n > 1 << 20 ? 1 << 20 : (int)n);
        if (ret <= 0) {
            int why = SSL_get_error(c->ssl, ret);
            if (why != SSL_ERROR_WANT_READ && why != SSL_ERROR_WANT_WRITE) {
                die("SSL_write failed with code %d", why);
            }
            errno = EAGAIN;
            return -1;
        }
        return ret;
    }
#endif
    return send(c->fd, data, n, MSG_DONTWAIT | MSG_NOSIGNAL);
}

static ssize_t conn_recv(struct conn *c, char *data, size_t n)
{
#ifdef WITH_TLS
    if (c->ssl) {
        int ret = SSL_read(c->ssl, data, (int)n);
        if (ret <= 0) {
            int why = SSL_get_error(c->ssl, ret);
            if (why == SSL_ERROR_ZERO_RETURN) {
                return 0;
            }
            if (why != SSL_ERROR_WANT_READ && why != SSL_ERROR_WANT_WRITE) {
                die("SSL_read failed with code %d", why);
            }
            errno = EAGAIN;
            return -1;
        }
        return ret;
    }
#endif
    return recv(c->fd, data, n, MSG_DONTWAIT);
}

static void push(struct conn *c)
{
    while (c->out_done < opt.size) {
        ssize_t n = conn_send(c, c->message + c->out_done, opt.size - c->out_done);
        if (n < 0) {
            if (errno == EAGAIN || errno == ENOBUFS) {
                set_want_write(c, true);
                return;
            }
            if (errno == EINTR) {
                continue;
            }
            die("send: %s", strerror(errno));
        }
        c->out_done += (size_t)n;
    }
    set_want_write(c, false);
}

static void next_message(struct conn *c)
{
    c->seq++;
    c->out_done = c->in_done = 0;
    memcpy(c->message, &c->seq, opt.size < 8 ? opt.size : 8);
    c->sent_at = now_ns();
    push(c);
}

static void message_done(struct conn *c, const char *last)
{
    if (memcmp(c->head, c->message, opt.size < 8 ? opt.size : 8) != 0 ||
        *last != c->message[opt.size - 1]) {
        die("the echo differs from what was sent");
    }
    record(now_ns() - c->sent_at);
    next_message(c);
}

static void on_stream(struct conn *c)
{
    for (;;) {
        ssize_t n = conn_recv(c, scratch, scratch_size);
        if (n < 0) {
            if (errno == EAGAIN) {
                return;
            }
            if (errno == EINTR) {
                continue;
            }
            die("recv: %s", strerror(errno));
        }
        if (n == 0) {
            die("the server closed a connection");
        }
        if (c->in_done < 8) {
            size_t room = 8 - c->in_done;
            memcpy(c->head + c->in_done, scratch, (size_t)n < room ? (size_t)n : room);
        }
        c->in_done += (size_t)n;
        if (c->in_done > opt.size) {
            die("the server sent more than it was sent");
        }
        if (c->in_done == opt.size) {
            message_done(c, scratch + n - 1);
            return;
        }
        if ((size_t)n < scratch_size && opt.transport != TLS) {
            return; /* short: nothing more is there; level-triggered anyway */
        }
    }
}

static void on_datagram(struct conn *c)
{
    ssize_t n = recv(c->fd, scratch, scratch_size, MSG_DONTWAIT);

    if (n < 0) {
        if (errno == EAGAIN || errno == EINTR) {
            return;
        }
        die("recv: %s", strerror(errno));
    }
    if ((size_t)n != opt.size) {
        die("a datagram of %zd bytes came back for one of %zu", n, opt.size);
    }
    memcpy(c->head, scratch, opt.size < 8 ? opt.size : 8);
    if (memcmp(c->head, c->message, opt.size < 8 ? opt.size : 8) != 0) {
        return; /* the late answer to one that was sent again */
    }
    message_done(c, scratch + n - 1);
}

static int open_socket(void)
{
    int family = server_addr.ss_family;
    int type = opt.transport == UDP ? SOCK_DGRAM : SOCK_STREAM;
    int fd = socket(family, type | SOCK_CLOEXEC, 0);

    if (fd < 0) {
        die("socket: %s", strerror(errno));
    }
    if (family == AF_INET && type == SOCK_STREAM) {
        int one = 1;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    }
    return fd;
}

static void connect_now(struct conn *c)
{
    c->fd = open_socket();
    if (connect(c->fd, (struct sockaddr *)&server_addr, server_len) != 0) {
        die("connect: %s", strerror(errno));
    }
#ifdef WITH_TLS
    if (opt.transport == TLS) {
        c->ssl = SSL_new(tls_ctx);
        if (!c->ssl || SSL_set_fd(c->ssl, c->fd) != 1) {
            die("SSL_new failed");
        }
        if (SSL_connect(c->ssl) != 1) {
            die("TLS handshake failed: %s", ERR_reason_error_string(ERR_get_error()));
        }
        SSL_set_mode(c->ssl, SSL_MODE_ENABLE_PARTIAL_WRITE |
                                 SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    }
#endif
    fcntl(c->fd, F_SETFL, fcntl(c->fd, F_GETFL) | O_NONBLOCK);
    watch(c, EPOLL_CTL_ADD, EPOLLIN);
}

/* Accept storm: connect, wait for the server to close, reset, again. The reset keeps
 * TIME_WAIT sockets from piling up and from running out of ports. */
static void storm_connect(struct conn *c)
{
    struct linger reset = {.l_onoff = 1, .l_linger = 0};

    c->fd = open_socket();
    setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
    fcntl(c->fd, F_SETFL, fcntl(c->fd, F_GETFL) | O_NONBLOCK);
    c->sent_at = now_ns();
    if (connect(c->fd, (struct sockaddr *)&server_addr, server_len) != 0 &&
        errno != EINPROGRESS) {
        die("connect: %s", strerror(errno));
    }
    watch(c, EPOLL_CTL_ADD, EPOLLIN | EPOLLRDHUP);
}

static void on_storm(struct conn *c)
{
    ssize_t n = recv(c->fd, scratch, scratch_size, MSG_DONTWAIT);

    if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
        return;
    }
    if (n < 0 && errno != ECONNRESET) {
        die("recv: %s", strerror(errno));
    }
    if (n > 0) {
        return;
    }
    record(now_ns() - c->sent_at);
    close(c->fd);
    storm_connect(c);
}

static void check_stalls(struct conn *conns, uint64_t now)
{
    for (int i = 0; i < opt.connections; i++) {
        struct conn *c = &conns[i];
        uint64_t age = now > c->sent_at ? now - c->sent_at : 0;

        if (opt.transport == UDP && age > RESEND_NS && c->out_done == opt.size) {
            lost++;
            next_message(c);
        } else if (age > STALL_NS) {
            die("no answer within %llu s", STALL_NS / 1000000000ull);
        }
    }
}

static double number(const char *text, const char *name)
{
    char *end;
    double value = strtod(text, &end);

    if (end == text || *end || value < 0) {
        die("%s: not a number: %s", name, text);
    }
    return value;
}

static enum transport transport_of(const char *name)
{
    static const char *const names[] = {"tcp", "unix", "udp", "tls"};

    for (int i = 0; i < 4; i++) {
        if (strcmp(name, names[i]) == 0) {
            return (enum transport)i;
        }
    }
    die("unknown transport: %s", name);
}

static void parse(int argc, char **argv)
{
    static const struct option longs[] = {
        {"transport", 1, 0, 't'}, {"mode", 1, 0, 'm'},     {"host", 1, 0, 'h'},
        {"port", 1, 0, 'p'},      {"path", 1, 0, 'u'},     {"connections", 1, 0, 'n'},
        {"size", 1, 0, 's'},      {"warmup", 1, 0, 'w'},   {"duration", 1, 0, 'd'},
        {"server-pid", 1, 0, 'S'}, {"cpu", 1, 0, 'c'},     {0, 0, 0, 0},
    };
    int which;

    while ((which = getopt_long(argc, argv, "", longs, NULL)) != -1) {
        switch (which) {
        case 't': opt.transport = transport_of(optarg); break;
        case 'm': opt.mode = strcmp(optarg, "accept") == 0 ? ACCEPT : ECHO; break;
        case 'h': opt.host = optarg; break;
        case 'u': opt.path = optarg; break;
        case 'p': opt.port = (int)number(optarg, "port"); break;
        case 'n': opt.connections = (int)number(optarg, "connections"); break;
        case 's': opt.size = (size_t)number(optarg, "size"); break;
        case 'w': opt.warmup_ns = (uint64_t)(number(optarg, "warmup") * 1e9); break;
        case 'd': opt.duration_ns = (uint64_t)(number(optarg, "duration") * 1e9); break;
        case 'S': opt.server = (pid_t)number(optarg, "server-pid"); break;
        case 'c': opt.cpu = (int)number(optarg, "cpu"); break;
        default: die("unknown option");
        }
    }
    if (opt.connections < 1 || opt.size < 1 || opt.server < 1) {
        die("connections, size and server-pid must be given and positive");
    }
    if (opt.transport == UDP && opt.size > 65000) {
        die("a datagram has at most 65000 bytes here");
    }
}

static void resolve(void)
{
    if (opt.transport == UNIX) {
        struct sockaddr_un *sun = (struct sockaddr_un *)&server_addr;
        if (!opt.path || strlen(opt.path) >= sizeof(sun->sun_path)) {
            die("no path, or one that is too long");
        }
        sun->sun_family = AF_UNIX;
        strcpy(sun->sun_path, opt.path);
        server_len = sizeof(*sun);
    } else {
        struct sockaddr_in *sin = (struct sockaddr_in *)&server_addr;
        sin->sin_family = AF_INET;
        sin->sin_port = htons((uint16_t)opt.port);
        if (inet_pton(AF_INET, opt.host, &sin->sin_addr) != 1) {
            die("not an IPv4 address: %s", opt.host);
        }
        server_len = sizeof(*sin);
    }
#ifdef WITH_TLS
    if (opt.transport == TLS) {
        tls_ctx = SSL_CTX_new(TLS_client_method());
        if (!tls_ctx) {
            die("SSL_CTX_new failed");
        }
        /* the certificate was made for this run: nothing is to be verified */
        SSL_CTX_set_verify(tls_ctx, SSL_VERIFY_NONE, NULL);
    }
#else
    if (opt.transport == TLS) {
        die("this client was built without OpenSSL");
    }
#endif
}

static void start(struct conn *conns)
{
    for (int i = 0; i < opt.connections; i++) {
        struct conn *c = &conns[i];
        if (opt.mode == ACCEPT) {
            continue;
        }
        c->message = malloc(opt.size);
        if (!c->message) {
            die("no memory");
        }
        memset(c->message, 'a' + i % 26, opt.size);
        connect_now(c);
    }
    for (int i = 0; i < opt.connections; i++) {
        if (opt.mode == ACCEPT) {
            storm_connect(&conns[i]);
        } else {
            next_message(&conns[i]);
        }
    }
}

static void one_pass(struct conn *conns)
{
    struct epoll_event events[BATCH];
    int n = epoll_wait(epfd, events, BATCH, 100);

    if (n < 0 && errno != EINTR) {
        die("epoll_wait: %s", strerror(errno));
    }
    for (int i = 0; i < n; i++) {
        struct conn *c = events[i].data.ptr;

        if (opt.mode == ACCEPT) {
            on_storm(c);
            continue;
        }
        if (events[i].events & EPOLLOUT) {
            push(c);
        }
        if (events[i].events & (EPOLLIN | EPOLLERR | EPOLLHUP)) {
            if (opt.transport == UDP) {
                on_datagram(c);
            } else {
                on_stream(c);
            }
        }
    }
    (void)conns;
}

static void run_until(struct conn *conns, uint64_t end)
{
    uint64_t checked = now_ns(), now;

    while ((now = now_ns()) < end) {
        one_pass(conns);
        if (now - checked > 100000000ull) {
            checked = now;
            check_stalls(conns, now);
        }
    }
}

int main(int argc, char **argv)
{
    clockid_t server_clock;
    uint64_t t0, t1, s0, s1, c0, c1;
    struct conn *conns;

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    parse(argc, argv);
    resolve();
    if (opt.cpu >= 0) {
        cpu_set_t set;
        CPU_ZERO(&set);
        CPU_SET(opt.cpu, &set);
        if (sched_setaffinity(0, sizeof(set), &set) != 0) {
            die("sched_setaffinity: %s", strerror(errno));
        }
    }
    if (clock_getcpuclockid(opt.server, &server_clock) != 0) {
        die("no CPU clock for process %d", (int)opt.server);
    }
    epfd = epoll_create1(EPOLL_CLOEXEC);
    scratch_size = opt.size < 65536 ? 65536 : 262144;
    scratch = malloc(scratch_size);
    conns = calloc((size_t)opt.connections, sizeof(*conns));
    if (epfd < 0 || !scratch || !conns) {
        die("cannot set up: %s", strerror(errno));
    }

    start(conns);
    run_until(conns, now_ns() + opt.warmup_ns);
    memset(histogram, 0, sizeof(histogram));
    messages = lost = latency_sum = latency_max = 0;
    s0 = read_clock(server_clock);
    c0 = read_clock(CLOCK_PROCESS_CPUTIME_ID);
    t0 = now_ns();
    run_until(conns, t0 + opt.duration_ns);
    s1 = read_clock(server_clock);
    c1 = read_clock(CLOCK_PROCESS_CPUTIME_ID);
    t1 = now_ns();

    if (messages == 0) {
        die("not one message came back in the measured window");
    }
    printf("{\"client\": \"C\", \"messages\": %llu, \"wall_ns\": %llu, "
           "\"server_cpu_ns\": %llu, \"client_cpu_ns\": %llu, \"lost\": %llu, "
           "\"mean_us\": %.3f, \"p50_us\": %.3f, \"p90_us\": %.3f, "
           "\"p99_us\": %.3f, \"max_us\": %.3f}\n",
           (unsigned long long)messages, (unsigned long long)(t1 - t0),
           (unsigned long long)(s1 - s0), (unsigned long long)(c1 - c0),
           (unsigned long long)lost, (double)latency_sum / (double)messages / 1000.0,
           percentile_us(0.50), percentile_us(0.90), percentile_us(0.99),
           (double)latency_max / 1000.0);
    return 0;
}
