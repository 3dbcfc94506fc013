/* walk: what processes have open, and their memory, as far as it is told at first sight; several at a time.
 *
 * Of each process one message in MessagePack, four things in an array:
 *
 *     {fd, kind, target, device, inode, ...}   plain files, pipes, and the sockets that the kernel's tables have; the
 *                                              names are those of reports.record.Descriptor
 *     [fd, inode]                              all other sockets: of other families or network namespaces than ours,
 *                                              never connected, or with a name that is not ASCII
 *     fd                                       all else, to be looked at again: devices, directories, what epoll(7) and
 *                                              its like are called, memfds, names that are not ASCII, files whose name
 *                                              ends in " (deleted)" and which still have a name, what stat(2) refuses,
 *                                              paths that are longer than PATH_MAX
 *     bytes                                    smaps_rollup; none where it cannot be read
 *
 * The first three are arrays. The tables of sockets are asked for when first needed, family by family until none is
 * missing. A walk is a system call after the other, each of one process, which the kernel does on several cores at once.
 */
#define _GNU_SOURCE
#define _FILE_OFFSET_BITS 64 /* or stat(2) refuses large files on machines of 32 bits */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "walk.h"

#define FIRST (1 << 16) /* of a message; enough for some 400 descriptors */
#define LEFT 19		/* two numbers in an array of their own */
#define LENGTH 5	/* of an array */
#define ROLLUP 4096	/* it has some 900 */
#define THREADS 8	/* more wait for each other in the kernel */

/* What is left for later: a socket, or with inode 0 what has to be looked at again. */
struct left {
	int fd;
	uint64_t inode;
};

struct process {
	int pid;
	int error;		/* or 0 and a message */
	unsigned char *message; /* of `length` bytes, in `room` */
	size_t length, room;
	uint32_t told; /* descriptors */
	struct left *left;
	size_t count;
};

struct walk {
	uint64_t device_of_pipes, device_of_sockets;
	struct tables tables;
	atomic_size_t next;
	size_t count;
	struct process processes[];
};

/* Where to write `size` bytes more; NULL when there is no memory. */
static unsigned char *room(struct process *process, size_t size)
{
	size_t wanted = process->room ? process->room : FIRST;
	unsigned char *more = process->message;

	while (wanted - process->length < size)
		wanted *= 2;
	if (wanted != process->room) {
		more = realloc(more, wanted);
		if (more == NULL)
			return NULL;
		process->message = more;
		process->room = wanted;
	}
	return more + process->length;
}

static void written(struct process *process, const unsigned char *until)
{
	process->length = until - process->message;
}

static int leave(struct process *process, int fd, uint64_t inode)
{
	struct left *more = process->left;

	if ((process->count & (process->count - 1)) == 0) /* room for the next power of two */
		more = realloc(more, (process->count ? 2 * process->count : 1) * sizeof *more);
	if (more == NULL)
		return ENOMEM;
	process->left = more;
	more[process->count++] = (struct left){ fd, inode };
	return 0;
}

/* ---- descriptors */

static int begins(const char *link, const char *with)
{
	return strncmp(link, with, strlen(with)) == 0;
}

static int ascii(const char *link)
{
	while (*link && !(*link & 0x80))
		link++;
	return *link == 0;
}

/* Writes a pipe or a plain file, and leaves anything else. An error number when the kernel does not tell. */
static int look(struct process *process, int links, const char *name, uint64_t device_of_pipes)
{
	static const char PIPE[] = "pipe:[", MEMFD[] = "/memfd:", DELETED[] = " (deleted)";
	const ssize_t suffix = strlen(DELETED);
	char link[PATH_MAX + 1];
	struct stat status;
	int fd = atoi(name), deleted;
	ssize_t length = readlinkat(links, name, link, PATH_MAX);
	unsigned char *at;

	if (length < 0)
		return errno == ENAMETOOLONG ? leave(process, fd, 0) : errno;
	link[length] = 0;
	if (begins(link, SOCKET_LINK))
		return leave(process, fd, strtoull(link + strlen(SOCKET_LINK), NULL, 10));
	at = room(process, LARGEST);
	if (at == NULL)
		return ENOMEM;
	if (begins(link, PIPE)) {
		at = descriptor(at, 5, fd, "pipe", link, length, device_of_pipes,
				strtoull(link + strlen(PIPE), NULL, 10));
	} else {
		if (*link != '/' || begins(link, MEMFD) || !ascii(link))
			return leave(process, fd, 0);
		if (fstatat(links, name, &status, 0) < 0)
			return errno == ENOENT || errno == ESRCH ? errno : leave(process, fd, 0);
		deleted = length > suffix && strcmp(link + length - suffix, DELETED) == 0;
		if (!S_ISREG(status.st_mode) || (deleted && status.st_nlink > 0))
			return leave(process, fd, 0);
		length -= deleted ? suffix : 0;
		at = descriptor(at, 5 + deleted, fd, "file", link, length, status.st_dev, status.st_ino);
		if (deleted)
			at = truth(string(at, "deleted"));
	}
	written(process, at);
	process->told++;
	return 0;
}

static int look_at_all(struct process *process, uint64_t device_of_pipes)
{
	int error = 0, ourselves = process->pid == getpid();
	struct dirent *entry;
	char path[32];
	DIR *links;

	snprintf(path, sizeof path, "/proc/%d/fd", process->pid);
	links = opendir(path);
	if (links == NULL)
		return errno;
	while (error == 0 && (errno = 0, entry = readdir(links)) != NULL) {
		if (*entry->d_name == '.' || (ourselves && atoi(entry->d_name) == dirfd(links)))
			continue;
		error = look(process, dirfd(links), entry->d_name, device_of_pipes);
		if (error == ENOENT || error == ESRCH)
			error = 0; /* closed since the listing */
	}
	if (error == 0)
		error = errno; /* 0 after the last entry: readdir(3) */
	closedir(links);
	return error;
}

/* Writes the sockets that the tables have, and takes them out of what is left. */
static void look_up_sockets(struct walk *walk, struct process *process)
{
	size_t each, kept, unknown;
	unsigned char *at, *after;
	int asked;

	do {
		asked = tables_lock(&walk->tables);
		for (each = kept = unknown = 0; each < process->count; each++) {
			const struct left *left = &process->left[each];

			after = NULL;
			if (left->inode) {
				at = room(process, LARGEST);
				if (at)
					after = socket_descriptor(at, &walk->tables, left->fd, walk->device_of_sockets,
								  left->inode);
				unknown += after == NULL;
			}
			if (after) {
				written(process, after);
				process->told++;
			} else {
				process->left[kept++] = *left;
			}
		}
		process->count = kept;
		tables_unlock(&walk->tables);
	} while (unknown && tables_ask(&walk->tables, asked));
}

static int write_what_is_left(struct process *process)
{
	unsigned char *at = room(process, 2 * LENGTH + process->count * LEFT);
	size_t each, sockets = 0;

	if (at == NULL)
		return ENOMEM;
	for (each = 0; each < process->count; each++)
		sockets += process->left[each].inode != 0;
	at = array(at, sockets);
	for (each = 0; each < process->count; each++) {
		if (process->left[each].inode) {
			*at++ = 0x92;
			at = integer(integer(at, process->left[each].fd), process->left[each].inode);
		}
	}
	at = array(at, process->count - sockets);
	for (each = 0; each < process->count; each++)
		if (process->left[each].inode == 0)
			at = integer(at, process->left[each].fd);
	written(process, at);
	return 0;
}

/* ---- memory */

static int write_memory(struct process *process)
{
	char path[32], rollup[ROLLUP];
	ssize_t more = 0, length = 0;
	unsigned char *at = room(process, LENGTH + ROLLUP);
	int file;

	if (at == NULL)
		return ENOMEM;
	snprintf(path, sizeof path, "/proc/%d/smaps_rollup", process->pid);
	file = open(path, O_RDONLY | O_CLOEXEC);
	if (file >= 0) {
		while ((more = read(file, rollup + length, ROLLUP - length)) > 0)
			length += more;
		close(file);
	}
	written(process, bytes(at, rollup, more < 0 ? 0 : length));
	return 0;
}

/* ---- one after the other, and several at a time */

static void look_into(struct walk *walk, struct process *process)
{
	unsigned char *at = room(process, 1 + LENGTH);

	process->error = ENOMEM;
	if (at == NULL)
		return;
	*at = 0x94;
	written(process, at + 1 + LENGTH); /* of descriptors; how many is told last */
	process->error = look_at_all(process, walk->device_of_pipes);
	if (process->error == 0)
		look_up_sockets(walk, process);
	if (process->error == 0)
		process->error = write_what_is_left(process);
	if (process->error == 0)
		process->error = write_memory(process);
	array(process->message + 1, process->told);
	free(process->left);
	process->left = NULL;
}

/* All but ourselves, whose descriptors are also those that all others look by. */
static void *look_into_others(void *of)
{
	struct walk *walk = of;
	size_t each;

	while ((each = atomic_fetch_add(&walk->next, 1)) < walk->count)
		if (walk->processes[each].pid != getpid())
			look_into(walk, &walk->processes[each]);
	return NULL;
}

void seatbelt_forget(struct walk *walk)
{
	size_t each;

	for (each = 0; each < walk->count; each++)
		free(walk->processes[each].message);
	free(walk);
}

/* NULL when there is no memory. */
struct walk *seatbelt_walk(const int *pids, size_t count, int cores, uint64_t device_of_pipes, uint64_t device_of_sockets)
{
	struct walk *walk = calloc(1, sizeof *walk + count * sizeof *walk->processes);
	pthread_t threads[THREADS];
	int running = 0, helpers = cores < THREADS ? cores - 1 : THREADS - 1;
	sigset_t all, before;
	size_t each;

	if (walk == NULL || tables_begin(&walk->tables)) {
		free(walk);
		return NULL;
	}
	walk->device_of_pipes = device_of_pipes;
	walk->device_of_sockets = device_of_sockets;
	walk->count = count;
	for (each = 0; each < count; each++)
		walk->processes[each].pid = pids[each];
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before); /* signals are for those who wait for them */
	while (running < helpers && (size_t)running + 1 < count &&
	       pthread_create(&threads[running], NULL, look_into_others, walk) == 0)
		running++;
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	look_into_others(walk);
	while (running--)
		pthread_join(threads[running], NULL);
	for (each = 0; each < count; each++)
		if (pids[each] == getpid())
			look_into(walk, &walk->processes[each]);
	tables_end(&walk->tables);
	return walk;
}

/* How long the message of a process is, and where; or an error number, negative. */
long seatbelt_told(const struct walk *walk, size_t each, const unsigned char **message)
{
	const struct process *process = &walk->processes[each];

	*message = process->message;
	return process->error ? -process->error : (long)process->length;
}
