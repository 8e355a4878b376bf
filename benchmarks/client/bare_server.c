/* A server without an event loop, a protocol or Python: what the kernel alone costs.
 *
 * bare_server KIND CPU [PATH]: one thread on level-triggered epoll, as many calls an event
 * as a loop makes (a wait for all that are ready, a receive and a send each), and nothing
 * around them. It prints one JSON line with its address, then answers on standard input
 * as servers.py does. It knows nothing of rows or clients.
 *
 * KIND: tcp-protocol or unix-protocol (echoes), tcp-accept (accepts and closes).
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define READ_SIZE 65536
#define BACKLOG 1024
#define BATCH 1024

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static void say(const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vprintf(format, args);
    va_end(args);
    fflush(stdout);
}

static double seconds(struct timeval t)
{
    return (double)t.tv_sec + (double)t.tv_usec * 1e-6;
}

static void *control(void *unused)
{
    char line[64];
    struct rusage used;

    (void)unused;
    while (fgets(line, sizeof(line), stdin) != NULL) {
        if (strcmp(line, "usage\n") == 0) {
            getrusage(RUSAGE_SELF, &used);
            say("{\"user\": %.6f, \"system\": %.6f, \"voluntary_switches\": %ld, "
                "\"involuntary_switches\": %ld, \"max_rss_kib\": %ld}\n",
                seconds(used.ru_utime), seconds(used.ru_stime), used.ru_nvcsw,
                used.ru_nivcsw, used.ru_maxrss);
        } else if (strcmp(line, "quit\n") == 0) {
            exit(0);
        } else {
            say("{}\n");
        }
    }
    _exit(0); /* whoever started this process has gone */
}

static int listen_tcp(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET};
    socklen_t size = sizeof(address);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, size) != 0
        || listen(fd, BACKLOG) != 0
        || getsockname(fd, (struct sockaddr *)&address, &size) != 0)
        die("cannot listen");
    say("{\"address\": {\"host\": \"127.0.0.1\", \"port\": %d}, \"pid\": %d}\n",
        ntohs(address.sin_port), (int)getpid());
    return fd;
}

static int listen_unix(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

    if (strlen(path) >= sizeof(address.sun_path)) {
        fprintf(stderr, "the path is too long\n");
        exit(1);
    }
    strcpy(address.sun_path, path);
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof(address)) != 0
        || listen(fd, BACKLOG) != 0)
        die("cannot listen");
    say("{\"address\": {\"path\": \"%s\"}, \"pid\": %d}\n", path, (int)getpid());
    return fd;
}

/* Echo what is there; whether the connection goes on. */
static bool echo(int fd, char *buffer)
{
    ssize_t n = recv(fd, buffer, READ_SIZE, MSG_DONTWAIT);
    ssize_t sent = 0;

    if (n <= 0)
        return n < 0 && (errno == EAGAIN || errno == EINTR);
    while (sent < n) {
        ssize_t m = send(fd, buffer + sent, (size_t)(n - sent), MSG_NOSIGNAL);

        if (m < 0 && errno != EAGAIN && errno != EINTR)
            return false;
        sent += m > 0 ? m : 0;
    }
    return true;
}

int main(int argc, char **argv)
{
    static char buffer[READ_SIZE];
    static struct epoll_event events[BATCH];
    struct epoll_event event = {.events = EPOLLIN};
    pthread_t thread;
    cpu_set_t cpus;
    int listener, set, one = 1;
    bool closes, tcp;

    if (argc < 3) {
        fprintf(stderr, "usage: bare_server KIND CPU [PATH]\n");
        return 2;
    }
    tcp = strncmp(argv[1], "tcp-", 4) == 0;
    closes = strcmp(argv[1], "tcp-accept") == 0;
    CPU_ZERO(&cpus);
    CPU_SET(atoi(argv[2]), &cpus);
    if (sched_setaffinity(0, sizeof(cpus), &cpus) != 0)
        die("sched_setaffinity");
    if (!tcp && argc < 4) {
        fprintf(stderr, "a unix server needs a path\n");
        return 2;
    }
    listener = tcp ? listen_tcp() : listen_unix(argv[3]);
    set = epoll_create1(EPOLL_CLOEXEC);
    event.data.fd = listener;
    if (set < 0 || epoll_ctl(set, EPOLL_CTL_ADD, listener, &event) != 0)
        die("epoll");
    if (pthread_create(&thread, NULL, control, NULL) != 0)
        die("pthread_create");
    for (;;) {
        int n = epoll_wait(set, events, BATCH, -1);

        for (int i = 0; i < n; i++) {
            int fd = events[i].data.fd;

            if (fd != listener) {
                if (!echo(fd, buffer))
                    close(fd);
                continue;
            }
            while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
                if (closes) {
                    close(fd);
                    continue;
                }
                if (tcp)
                    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
                event.data.fd = fd;
                if (epoll_ctl(set, EPOLL_CTL_ADD, fd, &event) != 0)
                    die("epoll_ctl");
            }
        }
    }
}
