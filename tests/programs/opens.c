/* opens: makes a descriptor in every way, each in a function named after it, and a child that inherits and receives.

   Prints `PID NUMBER FUNCTION` for each, the child `… received_by_recvmsg` for what it was sent; then both wait for
   standard input to end. */

#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <netinet/in.h>
#include <unistd.h>

#define WAY(name, expression)                                    \
    static __attribute__((noinline)) void name(void) {           \
        printf("%d %d %s\n", (int)getpid(), (expression), #name); \
    }

static char template[] = "XXXXXX"; /* in the working directory */
static int pair[2], both[2];

static int listening(void) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM, 0), client = socket(AF_INET, SOCK_STREAM, 0);

    if (bind(listener, (struct sockaddr *)&address, length) || listen(listener, 1) ||
        getsockname(listener, (struct sockaddr *)&address, &length) ||
        connect(client, (struct sockaddr *)&address, length))
        exit(1);
    return listener;
}

WAY(by_open, open("/etc/passwd", O_RDONLY))
WAY(by_openat, openat(AT_FDCWD, "/etc/passwd", O_RDONLY))
WAY(by_fopen, fileno(fopen("/etc/passwd", "r")))
WAY(by_opendir, dirfd(opendir("/etc")))
WAY(by_mkstemp, mkstemp(template))
WAY(by_creat, creat("created", 0600))
WAY(by_socket, socket(AF_INET, SOCK_DGRAM, 0))
WAY(by_socketpair, socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0 ? pair[1] : -1)
WAY(by_accept, accept(listening(), NULL, NULL))
WAY(by_accept4, accept4(listening(), NULL, NULL, SOCK_CLOEXEC))
WAY(by_pipe, pipe(both) == 0 ? both[1] : -1)
WAY(by_dup, dup(both[1]))
WAY(by_dup2, dup2(both[1], 200))
WAY(by_fcntl, fcntl(both[1], F_DUPFD_CLOEXEC, 100))
WAY(by_epoll, epoll_create1(0))
WAY(by_eventfd, eventfd(0, 0))
WAY(by_timerfd, timerfd_create(CLOCK_MONOTONIC, 0))
WAY(by_inotify, inotify_init1(0))
WAY(by_memfd, memfd_create("opens", 0))

union rights {
    struct cmsghdr header;
    char room[CMSG_SPACE(sizeof(int))];
};

static __attribute__((noinline)) int opened_to_be_passed(void) {
    return open("/etc/group", O_RDONLY);
}

static void pass(int number) {
    char byte = 0;
    union rights rights = {.header = {CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS}};
    struct iovec part = {&byte, 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &rights, .msg_controllen = sizeof rights};

    memcpy(CMSG_DATA(&rights.header), &number, sizeof number);
    if (sendmsg(pair[0], &message, 0) != 1)
        exit(1);
}

static __attribute__((noinline)) void received_by_recvmsg(void) {
    char byte;
    int number;
    union rights rights;
    struct iovec part = {&byte, 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &rights, .msg_controllen = sizeof rights};

    if (recvmsg(pair[1], &message, 0) != 1)
        exit(1);
    memcpy(&number, CMSG_DATA(&rights.header), sizeof number);
    printf("%d %d %s\n", (int)getpid(), number, __func__);
}

static __attribute__((noinline)) pid_t forked(void) {
    return fork();
}

int main(void) {
    int passed;

    if (getchar() == EOF) /* whoever wants to trace this is there now */
        return 1;
    by_open(), by_openat(), by_fopen(), by_opendir(), by_mkstemp(), by_creat(), by_socket(), by_socketpair();
    by_accept(), by_accept4(), by_pipe(), by_dup(), by_dup2(), by_fcntl();
    by_epoll(), by_eventfd(), by_timerfd(), by_inotify(), by_memfd();
    unlink(template), unlink("created");
    passed = opened_to_be_passed();
    fflush(stdout);
    if (forked() == 0) {
        close(passed);
        received_by_recvmsg();
    } else
        pass(passed);
    printf("%d -1 done\n", (int)getpid());
    fflush(stdout);
    while (getchar() != EOF)
        ;
    return 0;
}
