/* tracker: writes down where descriptors, children and threads are made.

   Preloaded (ld.so(8), LD_PRELOAD) into a target's processes in a second run, after a finding. SEATBELT_TRACKER names a
   directory with a file `log`, which the harness made and all processes of the target map: each event takes the next
   place in it, so nothing is asked of a process, and what it knew is still there when it has ended. What the addresses
   in the log mean is told by `maps.N`, a copy of /proc/self/maps beside it: N is the place of the event with which a
   program began.

   An event is only ever added: who closed what is not followed, since a descriptor that is open now was made by the
   latest event with its number, device and inode (`harness/tracing/tracker.py`).

   Owns: the places it took in the log. Never: keeps a descriptor, takes a signal, starts a thread, changes a result or
   errno. When the log is full, it goes on counting and writes no more. */

#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <execinfo.h>
#include <fcntl.h>
#include <pthread.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

#define MOST_FRAMES 18 /* of which two or three are the tracker's own */

enum what { BEGAN = 1, FORKED, CHILD, THREAD, OPENED, CREATED, RECEIVED, PASSED };

struct event { /* as harness/agent/native/__init__.py has it */
    _Atomic int32_t what; /* written last: 0 is an event that was never finished */
    int32_t pid;
    int32_t number; /* descriptor; pid of the parent (BEGAN, FORKED) or the child; thread */
    int32_t unused;
    uint64_t device, inode;
    uint64_t frames[MOST_FRAMES]; /* return addresses, innermost first; 0 after the last */
};

struct log {
    _Atomic uint64_t next, places;
    uint64_t unused[20]; /* so that it is as long as an event */
    struct event events[];
};

static struct log *events;
static _Thread_local int inside; /* what the tracker itself opens is nobody's business */

/* The function that the program would call without us; looked for once. */
#define REAL(name)                                 \
    ({                                             \
        static __typeof__(&name) known;            \
        if (known == NULL)                         \
            known = (__typeof__(&name))real(#name); \
        known;                                     \
    })

static void *real(const char *name) {
    void *found = dlsym(RTLD_NEXT, name);

    if (found == NULL)
        abort(); /* the C library has no such function: nobody can have called it */
    return found;
}

/* Returns its place. */
static uint64_t write_down(enum what what, int number, const struct stat *file, void *const *frames, int frame_count) {
    uint64_t place = atomic_fetch_add(&events->next, 1);
    struct event *event = &events->events[place];

    if (place >= events->places)
        return place;
    event->pid = (int32_t)getpid();
    event->number = number;
    if (file != NULL) {
        event->device = file->st_dev;
        event->inode = file->st_ino;
    }
    for (int frame = 0; frame < frame_count && frame < MOST_FRAMES; frame++)
        event->frames[frame] = (uint64_t)(uintptr_t)frames[frame];
    atomic_store(&event->what, what);
    return place;
}

static void note(enum what what, int number) {
    void *frames[MOST_FRAMES];
    struct stat file = {0};
    int before = errno, is_descriptor = what >= OPENED;

    if (events == NULL || number < 0 || inside)
        return;
    inside = 1;
    if (!is_descriptor || fstat(number, &file) == 0)
        write_down(what, number, &file, frames, backtrace(frames, MOST_FRAMES));
    inside = 0;
    errno = before;
}

static void note_rights(enum what what, const struct msghdr *message) { /* unix(7), SCM_RIGHTS */
    for (struct cmsghdr *part = CMSG_FIRSTHDR(message); part != NULL;
         part = CMSG_NXTHDR((struct msghdr *)message, part))
        if (part->cmsg_level == SOL_SOCKET && part->cmsg_type == SCM_RIGHTS)
            for (size_t at = 0; CMSG_LEN(at + sizeof(int)) <= part->cmsg_len; at += sizeof(int)) {
                int number;
                memcpy(&number, CMSG_DATA(part) + at, sizeof number);
                note(what, number);
            }
}

/* ---- functions in the place of the C library's */

#define RETURNS_ONE(name, parameters, arguments) \
    int name parameters {                        \
        int made = REAL(name) arguments;         \
        note(OPENED, made);                      \
        return made;                             \
    }

#define RETURNS_PAIR(name, parameters, arguments, pair) \
    int name parameters {                               \
        int result = REAL(name) arguments;              \
        if (result == 0) {                              \
            note(OPENED, pair[0]);                      \
            note(OPENED, pair[1]);                      \
        }                                               \
        return result;                                  \
    }

#define RETURNS_FILE(type, name, parameters, arguments, number_of, what) \
    type *name parameters {                                              \
        type *made = REAL(name) arguments;                               \
        if (made != NULL)                                                \
            note(what, number_of(made));                                 \
        return made;                                                     \
    }

#define OPENS(name, parameters, arguments, flags)            \
    int name parameters {                                    \
        mode_t mode = 0;                                     \
        int made;                                            \
        if ((flags) & (O_CREAT | __O_TMPFILE)) {             \
            va_list rest;                                    \
            va_start(rest, flags);                           \
            mode = va_arg(rest, mode_t);                     \
            va_end(rest);                                    \
        }                                                    \
        made = REAL(name) arguments;                         \
        note((flags) & O_CREAT ? CREATED : OPENED, made);    \
        return made;                                         \
    }

OPENS(open, (const char *path, int flags, ...), (path, flags, mode), flags)
OPENS(open64, (const char *path, int flags, ...), (path, flags, mode), flags)
OPENS(openat, (int directory, const char *path, int flags, ...), (directory, path, flags, mode), flags)
OPENS(openat64, (int directory, const char *path, int flags, ...), (directory, path, flags, mode), flags)

/* What open(2) becomes under _FORTIFY_SOURCE, without O_CREAT. */
int __open_2(const char *, int);
int __open64_2(const char *, int);
int __openat_2(int, const char *, int);
int __openat64_2(int, const char *, int);
RETURNS_ONE(__open_2, (const char *path, int flags), (path, flags))
RETURNS_ONE(__open64_2, (const char *path, int flags), (path, flags))
RETURNS_ONE(__openat_2, (int directory, const char *path, int flags), (directory, path, flags))
RETURNS_ONE(__openat64_2, (int directory, const char *path, int flags), (directory, path, flags))

#define CREATES(name, parameters, arguments) \
    int name parameters {                    \
        int made = REAL(name) arguments;     \
        note(CREATED, made);                 \
        return made;                         \
    }

CREATES(creat, (const char *path, mode_t mode), (path, mode))
CREATES(creat64, (const char *path, mode_t mode), (path, mode))
CREATES(mkstemp, (char *template), (template))
CREATES(mkstemp64, (char *template), (template))
CREATES(mkostemp, (char *template, int flags), (template, flags))
CREATES(mkostemp64, (char *template, int flags), (template, flags))

RETURNS_FILE(FILE, fopen, (const char *path, const char *mode), (path, mode), fileno, *mode == 'r' ? OPENED : CREATED)
RETURNS_FILE(FILE, fopen64, (const char *path, const char *mode), (path, mode), fileno, *mode == 'r' ? OPENED : CREATED)
RETURNS_FILE(FILE, freopen, (const char *path, const char *mode, FILE *file), (path, mode, file), fileno, OPENED)
RETURNS_FILE(FILE, tmpfile, (void), (), fileno, CREATED)
RETURNS_FILE(FILE, popen, (const char *command, const char *mode), (command, mode), fileno, OPENED)
RETURNS_FILE(DIR, opendir, (const char *path), (path), dirfd, OPENED)

RETURNS_ONE(socket, (int domain, int type, int protocol), (domain, type, protocol))
RETURNS_ONE(accept, (int from, struct sockaddr *peer, socklen_t *length), (from, peer, length))
RETURNS_ONE(accept4, (int from, struct sockaddr *peer, socklen_t *length, int flags), (from, peer, length, flags))
RETURNS_PAIR(socketpair, (int domain, int type, int protocol, int pair[2]), (domain, type, protocol, pair), pair)
RETURNS_PAIR(pipe, (int pair[2]), (pair), pair)
RETURNS_PAIR(pipe2, (int pair[2], int flags), (pair, flags), pair)

RETURNS_ONE(dup, (int number), (number))
RETURNS_ONE(dup2, (int number, int wanted), (number, wanted))
RETURNS_ONE(dup3, (int number, int wanted, int flags), (number, wanted, flags))

#define DUPLICATES(name)                                             \
    int name(int number, int command, ...) {                         \
        va_list rest;                                                \
        void *argument; /* an int is passed as widely */             \
        int result;                                                  \
        va_start(rest, command);                                     \
        argument = va_arg(rest, void *);                             \
        va_end(rest);                                                \
        result = REAL(name)(number, command, argument);              \
        if (command == F_DUPFD || command == F_DUPFD_CLOEXEC)        \
            note(OPENED, result);                                    \
        return result;                                               \
    }

DUPLICATES(fcntl)
DUPLICATES(fcntl64)

/* Declared here, because a C library may lack the newest, and their headers with them. */
int epoll_create(int), epoll_create1(int), eventfd(unsigned, int), timerfd_create(int, int);
int inotify_init(void), inotify_init1(int), memfd_create(const char *, unsigned);
int signalfd(int, const sigset_t *, int), pidfd_open(pid_t, unsigned), shm_open(const char *, int, mode_t);
RETURNS_ONE(epoll_create, (int size), (size))
RETURNS_ONE(epoll_create1, (int flags), (flags))
RETURNS_ONE(eventfd, (unsigned value, int flags), (value, flags))
RETURNS_ONE(timerfd_create, (int clock, int flags), (clock, flags))
RETURNS_ONE(inotify_init, (void), ())
RETURNS_ONE(inotify_init1, (int flags), (flags))
RETURNS_ONE(memfd_create, (const char *name, unsigned flags), (name, flags))
RETURNS_ONE(signalfd, (int number, const sigset_t *signals, int flags), (number, signals, flags))
RETURNS_ONE(pidfd_open, (pid_t pid, unsigned flags), (pid, flags))
RETURNS_ONE(shm_open, (const char *name, int flags, mode_t mode), (name, flags, mode))

ssize_t recvmsg(int from, struct msghdr *message, int flags) {
    ssize_t received = REAL(recvmsg)(from, message, flags);

    if (received >= 0)
        note_rights(RECEIVED, message);
    return received;
}

ssize_t sendmsg(int to, const struct msghdr *message, int flags) {
    note_rights(PASSED, message); /* before: the program may close it as soon as it was sent */
    return REAL(sendmsg)(to, message, flags);
}

pid_t fork(void) {
    pid_t child = REAL(fork)();

    if (child > 0)
        note(CHILD, child);
    return child;
}

#define SPAWNS(name)                                                                                               \
    int name(pid_t *child, const char *path, const posix_spawn_file_actions_t *actions, const posix_spawnattr_t *how, \
             char *const arguments[], char *const environment[]) {                                                 \
        pid_t made = -1;                                                                                           \
        int result = REAL(name)(child != NULL ? child : &made, path, actions, how, arguments, environment);        \
        if (result == 0)                                                                                           \
            note(CHILD, child != NULL ? *child : made);                                                            \
        return result;                                                                                             \
    }

SPAWNS(posix_spawn)
SPAWNS(posix_spawnp)

struct start {
    void *(*function)(void *);
    void *argument;
    void *frames[MOST_FRAMES];
    int count;
};

static void *run_thread(void *given) {
    struct start start = *(struct start *)given;

    free(given);
    write_down(THREAD, (int)syscall(SYS_gettid), NULL, start.frames, start.count);
    return start.function(start.argument);
}

int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*function)(void *), void *argument) {
    struct start *start = events == NULL ? NULL : malloc(sizeof *start);
    int result;

    if (start == NULL)
        return REAL(pthread_create)(thread, attributes, function, argument);
    start->function = function;
    start->argument = argument;
    start->count = backtrace(start->frames, MOST_FRAMES);
    result = REAL(pthread_create)(thread, attributes, run_thread, start);
    if (result != 0)
        free(start);
    return result;
}

/* ---- beginning */

static void copy_maps(const char *directory, uint64_t place) {
    char path[4096], piece[4096];
    int from, to;
    ssize_t length;

    snprintf(path, sizeof path, "%s/maps.%llu", directory, (unsigned long long)place);
    from = REAL(open)("/proc/self/maps", O_RDONLY | O_CLOEXEC);
    to = REAL(open)(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    while (from >= 0 && to >= 0 && (length = read(from, piece, sizeof piece)) > 0)
        if (write(to, piece, (size_t)length) != length)
            break; /* disk full: the addresses past here stay numbers */
    if (from >= 0)
        close(from);
    if (to >= 0)
        close(to);
}

static pid_t itself;

/* In the child, whose parent may have ended already, as daemon(3)'s does: getppid(2) would name another. */
static void after_fork(void) {
    write_down(FORKED, itself, NULL, NULL, 0);
    itself = getpid();
}

__attribute__((constructor)) static void begin(void) {
    const char *directory = getenv("SEATBELT_TRACKER");
    char path[4096];
    void *first[1], *mapped = MAP_FAILED;
    struct stat found;
    int descriptor;

    if (directory == NULL)
        return;
    snprintf(path, sizeof path, "%s/log", directory);
    descriptor = REAL(open)(path, O_RDWR | O_CLOEXEC);
    if (descriptor < 0)
        return; /* where the harness is not, or this user may not write */
    if (fstat(descriptor, &found) == 0 && found.st_size > (off_t)sizeof(struct log))
        mapped = mmap(NULL, (size_t)found.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
    close(descriptor);
    if (mapped == MAP_FAILED)
        return;
    backtrace(first, 1); /* the first time it loads a library */
    events = mapped;
    itself = getpid();
    copy_maps(directory, write_down(BEGAN, (int)getppid(), NULL, NULL, 0));
    pthread_atfork(NULL, NULL, after_fork);
}
