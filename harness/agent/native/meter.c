/* meter: counts the bytes that malloc(3) has given out, where the harness can read them at any time.

   Preloaded (ld.so(8), LD_PRELOAD) into a target's processes. SEATBELT_METER names a file of slots which the harness
   made and which all processes of the target map; a process takes one when it begins and when it was forked, and adds
   to it what it allocates, by malloc_usable_size(3). `harness/probes/meter.py` reads it.

   Owns: one slot a process. Never: keeps a descriptor, takes a signal, starts a thread, changes what an allocation
   returns. Where the file cannot be had, or a program brings an allocator of its own, it counts for nobody. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

struct slot { /* as harness/agent/native/__init__.py has it */
    _Atomic int64_t pid; /* 0: nobody's */
    int64_t taken_ns;    /* on CLOCK_BOOTTIME: a process that began later has the pid, but not the slot */
    _Atomic int64_t bytes;
    _Atomic int64_t made; /* allocations, freed ones too: 0 where the program has an allocator of its own */
};

static struct slot nobodys; /* until a slot is taken, what is allocated is counted here */
static struct slot *_Atomic mine = &nobodys;
static struct slot *slots;
static size_t slot_count;

static void *(*real_malloc)(size_t);
static void (*real_free)(void *);
static void *(*real_calloc)(size_t, size_t);
static void *(*real_realloc)(void *, size_t);
static void *(*real_memalign)(size_t, size_t);
static size_t (*real_usable)(void *);

/* dlsym(3) may allocate before it has found us malloc: from here, and never freed. */
static char early[4096] __attribute__((aligned(16)));
static size_t early_used;

static int is_early(const void *block) {
    return (const char *)block >= early && (const char *)block < early + sizeof early;
}

static void *early_block(size_t size) {
    size_t start = early_used;

    size = (size + 15) & ~(size_t)15;
    if (size > sizeof early - start)
        return NULL;
    early_used = start + size;
    return early + start;
}

/* Returns whether the real functions are there; not while they are being looked for. */
static int is_ready(void) {
    static _Thread_local int looking;

    if (real_usable != NULL)
        return 1;
    if (looking)
        return 0;
    looking = 1;
    real_malloc = dlsym(RTLD_NEXT, "malloc");
    real_free = dlsym(RTLD_NEXT, "free");
    real_calloc = dlsym(RTLD_NEXT, "calloc");
    real_realloc = dlsym(RTLD_NEXT, "realloc");
    real_memalign = dlsym(RTLD_NEXT, "memalign");
    real_usable = dlsym(RTLD_NEXT, "malloc_usable_size"); /* the last: with it, all are there */
    looking = 0;
    return real_usable != NULL;
}

static void count(int64_t bytes, int made) {
    struct slot *slot = atomic_load_explicit(&mine, memory_order_relaxed);

    atomic_fetch_add_explicit(&slot->bytes, bytes, memory_order_relaxed);
    if (made)
        atomic_fetch_add_explicit(&slot->made, made, memory_order_relaxed);
}

static void *counted(void *block) {
    if (block != NULL)
        count((int64_t)real_usable(block), 1);
    return block;
}

void *malloc(size_t size) {
    return is_ready() ? counted(real_malloc(size)) : early_block(size);
}

void *calloc(size_t number, size_t size) {
    return is_ready() ? counted(real_calloc(number, size)) : early_block(number * size); /* zeroed from the start */
}

void free(void *block) {
    if (block == NULL || is_early(block) || !is_ready())
        return;
    count(-(int64_t)real_usable(block), 0);
    real_free(block);
}

void *realloc(void *block, size_t size) {
    size_t before;
    void *after;

    if (block == NULL)
        return malloc(size);
    if (is_early(block)) {
        before = (size_t)(early + sizeof early - (char *)block); /* at the most */
        after = malloc(size);
        if (after != NULL)
            memcpy(after, block, size < before ? size : before);
        return after;
    }
    if (!is_ready())
        return NULL;
    before = real_usable(block);
    after = real_realloc(block, size);
    if (after != NULL)
        count((int64_t)real_usable(after) - (int64_t)before, 0);
    else if (size == 0)
        count(-(int64_t)before, 0); /* freed: realloc(3) */
    return after;
}

void *reallocarray(void *block, size_t number, size_t size) {
    size_t bytes;

    if (__builtin_mul_overflow(number, size, &bytes)) {
        errno = ENOMEM;
        return NULL;
    }
    return realloc(block, bytes);
}

void *memalign(size_t alignment, size_t size) {
    return is_ready() ? counted(real_memalign(alignment, size)) : NULL;
}

void *aligned_alloc(size_t alignment, size_t size) {
    return memalign(alignment, size);
}

int posix_memalign(void **block, size_t alignment, size_t size) {
    int before = errno;
    void *made;

    if (alignment % sizeof(void *) != 0 || alignment == 0 || (alignment & (alignment - 1)) != 0)
        return EINVAL;
    made = memalign(alignment, size);
    errno = before;
    if (made == NULL)
        return ENOMEM;
    *block = made;
    return 0;
}

void *valloc(size_t size) {
    return memalign((size_t)sysconf(_SC_PAGESIZE), size);
}

/* Whether a slot can be had: it is nobody's, this process's from before an execve(2), or its process has ended. */
static int is_free(int64_t holder, int64_t pid) {
    return holder == 0 || holder == pid || (kill((pid_t)holder, 0) < 0 && errno == ESRCH);
}

static void take_slot(int64_t bytes, int64_t made) {
    int64_t pid = getpid();
    struct timespec now;
    int before = errno;

    clock_gettime(CLOCK_BOOTTIME, &now);
    for (size_t tried = 0; tried < slot_count; tried++) {
        struct slot *slot = &slots[((size_t)pid + tried) % slot_count];
        int64_t holder = atomic_load(&slot->pid);
        if (is_free(holder, pid) && atomic_compare_exchange_strong(&slot->pid, &holder, pid)) {
            slot->taken_ns = now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
            atomic_store(&slot->bytes, bytes);
            atomic_store(&slot->made, made);
            atomic_store(&mine, slot);
            break;
        }
    }
    errno = before;
}

static int64_t bytes_at_fork, made_at_fork;

static void before_fork(void) {
    struct slot *slot = atomic_load(&mine);

    bytes_at_fork = atomic_load(&slot->bytes);
    made_at_fork = atomic_load(&slot->made);
}

/* A child's heap is a copy of its parent's. */
static void after_fork(void) {
    atomic_store(&mine, &nobodys);
    take_slot(bytes_at_fork, made_at_fork);
}

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("SEATBELT_METER");
    int descriptor = path == NULL ? -1 : open(path, O_RDWR | O_CLOEXEC);
    struct stat found;
    void *mapped;

    if (descriptor < 0)
        return;
    is_ready();
    if (fstat(descriptor, &found) == 0 && found.st_size >= (off_t)sizeof(struct slot)) {
        mapped = mmap(NULL, (size_t)found.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
        if (mapped != MAP_FAILED) {
            slots = mapped;
            slot_count = (size_t)found.st_size / sizeof(struct slot);
            take_slot(atomic_load(&nobodys.bytes), atomic_load(&nobodys.made));
            pthread_atfork(before_fork, NULL, after_fork);
        }
    }
    close(descriptor);
}
