/* native: what a process has open, and its sockets' states and addresses, as far as they are told at first sight.
 *
 * seatbelt_walk() writes MessagePack, three arrays one after the other:
 *
 *     {fd, kind, target, device, inode, ...}   plain files, pipes, and the sockets that the kernel's tables have; the
 *                                              names are those of reports.record.Descriptor
 *     [fd, inode]                              all other sockets
 *     fd                                       all else, to be looked at again: devices, directories, what epoll(7) and
 *                                              its like are called, memfds, names that are not ASCII, files whose name
 *                                              ends in " (deleted)" and which still have a name, what stat(2) refuses
 *
 * The socket tables are asked for when first needed, family by family until none is missing (sock_diag(7)), and kept in
 * a `struct tables` for the walks that follow; one thread at a time may use it.
 */
#define _GNU_SOURCE
#define _FILE_OFFSET_BITS 64 /* or stat(2) refuses large files on machines of 32 bits */
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <linux/unix_diag.h>

#define LARGEST (PATH_MAX + 512) /* a descriptor */
#define LEFT 19                  /* two numbers in an array of their own */
#define LENGTH 5                 /* of an array */
#define RECEIVE (1 << 16)        /* the kernel sends half of it at most: netlink_recvmsg() */
#define NAME 128                 /* of a socket: 53 of IPv6 with brackets and a port; 109 of unix(7) with a NUL */

/* ---- MessagePack */

static unsigned char *number(unsigned char *at, unsigned char type, int bytes, uint64_t value)
{
	*at++ = type;
	while (bytes--)
		*at++ = value >> 8 * bytes;
	return at;
}

static unsigned char *integer(unsigned char *at, uint64_t value)
{
	return number(at, 0xcf, 8, value);
}

static unsigned char *array(unsigned char *at, uint32_t length)
{
	return number(at, 0xdd, 4, length);
}

static unsigned char *letters(unsigned char *at, const char *text, size_t length)
{
	at = number(at, 0xda, 2, length);
	memcpy(at, text, length);
	return at + length;
}

static unsigned char *string(unsigned char *at, const char *text)
{
	return letters(at, text, strlen(text));
}

static unsigned char *truth(unsigned char *at)
{
	*at++ = 0xc3;
	return at;
}

/* How many digits were written; no NUL after them. With snprintf(3) a snapshot takes longer by a thirtieth. */
static int decimal(char *into, uint64_t value)
{
	char digits[20];
	int count = 0, each;

	do
		digits[count++] = '0' + value % 10;
	while (value /= 10);
	for (each = 0; each < count; each++)
		into[each] = digits[count - 1 - each];
	return count;
}

static unsigned char *descriptor(unsigned char *at, int fields, int fd, const char *kind, const char *target,
				 size_t length, uint64_t device, uint64_t inode)
{
	*at++ = 0x80 | fields;
	at = integer(string(at, "fd"), fd);
	at = string(string(at, "kind"), kind);
	at = letters(string(at, "target"), target, length);
	at = integer(string(at, "device"), device);
	return integer(string(at, "inode"), inode);
}

/* ---- the kernel's tables of sockets */

struct answer {
	uint32_t inode;
	int protocol; /* 0 for unix(7) */
	const struct nlmsghdr *message;
};

struct tables {
	int asked; /* so many of FAMILIES */
	size_t count;
	struct answer *answers; /* by inode */
	struct received {
		struct received *before;
		unsigned char bytes[];
	} *last;
};

static const struct {
	int family, protocol;
} FAMILIES[] = {
	{ AF_UNIX, 0 }, { AF_INET, IPPROTO_TCP }, { AF_INET6, IPPROTO_TCP }, { AF_INET, IPPROTO_UDP }, { AF_INET6, IPPROTO_UDP },
};
#define ALL ((int)(sizeof FAMILIES / sizeof *FAMILIES))

static const char *const STATES[] = { "0", "ESTABLISHED", "SYN_SENT", "SYN_RECV", "FIN_WAIT1", "FIN_WAIT2", "TIME_WAIT",
				      "CLOSE", "CLOSE_WAIT", "LAST_ACK", "LISTEN", "CLOSING", "NEW_SYN_RECV" };
#define OWNED (((1 << 12) - 2) & ~(1 << TCP_TIME_WAIT)) /* states in which a process may hold one */

struct tables *seatbelt_tables(void)
{
	return calloc(1, sizeof(struct tables));
}

void seatbelt_forget(struct tables *tables)
{
	struct received *before;

	if (tables == NULL)
		return;
	for (; tables->last; tables->last = before) {
		before = tables->last->before;
		free(tables->last);
	}
	free(tables->answers);
	free(tables);
}

static int by_inode(const void *one, const void *other)
{
	uint32_t a = ((const struct answer *)one)->inode, b = ((const struct answer *)other)->inode;

	return (a > b) - (a < b);
}

/* Of several with the same inode, as MPTCP's flows are, any one. */
static const struct answer *find(const struct tables *tables, uint64_t inode)
{
	struct answer wanted = { .inode = inode };

	if (inode > UINT32_MAX || tables->count == 0)
		return NULL;
	return bsearch(&wanted, tables->answers, tables->count, sizeof wanted, by_inode);
}

static int add(struct tables *tables, int protocol, const struct nlmsghdr *message)
{
	uint32_t inode = protocol ? ((struct inet_diag_msg *)NLMSG_DATA(message))->idiag_inode
				  : ((struct unix_diag_msg *)NLMSG_DATA(message))->udiag_ino;
	struct answer *more = tables->answers;

	if (inode == 0) /* no process has it: TIME_WAIT, orphans */
		return 1;
	if ((tables->count & (tables->count - 1)) == 0) /* room for the next power of two */
		more = realloc(more, (tables->count ? 2 * tables->count : 1) * sizeof *more);
	if (more == NULL)
		return 0;
	tables->answers = more;
	more[tables->count++] = (struct answer){ inode, protocol, message };
	return 1;
}

/* Adds what one family has; where the kernel refuses, or breaks off, its sockets stay unknown. */
static void ask(struct tables *tables, int family, int protocol)
{
	struct {
		struct nlmsghdr header;
		union {
			struct inet_diag_req_v2 inet;
			struct unix_diag_req unix_;
		};
	} request = { .header = { sizeof request, SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, 1, 0 } };
	int diag = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG), more = diag >= 0;
	struct received *received;
	struct nlmsghdr *message;
	ssize_t length;

	if (protocol)
		request.inet = (struct inet_diag_req_v2){ .sdiag_family = family, .sdiag_protocol = protocol, .idiag_states = OWNED };
	else
		request.unix_ = (struct unix_diag_req){ .sdiag_family = family, .udiag_states = -1,
							.udiag_show = UDIAG_SHOW_NAME | UDIAG_SHOW_PEER };
	more = more && send(diag, &request, sizeof request, 0) >= 0;
	while (more && (received = malloc(sizeof *received + RECEIVE)) != NULL) {
		received->before = tables->last;
		tables->last = received;
		length = recv(diag, received->bytes, RECEIVE, 0);
		more = length > 0;
		for (message = (struct nlmsghdr *)received->bytes; more && NLMSG_OK(message, length);
		     message = NLMSG_NEXT(message, length))
			more = message->nlmsg_type == SOCK_DIAG_BY_FAMILY && add(tables, protocol, message);
	}
	if (diag >= 0)
		close(diag);
	if (tables->count)
		qsort(tables->answers, tables->count, sizeof *tables->answers, by_inode);
}

static const char *state_name(char *into, int protocol, unsigned int number)
{
	if (protocol == IPPROTO_UDP)
		return "";
	if (protocol == 0 && number == TCP_ESTABLISHED) /* unix(7) sockets borrow TCP's numbers */
		return "CONNECTED";
	if (protocol == 0 && number == TCP_CLOSE)
		return "UNCONNECTED";
	if (number < sizeof STATES / sizeof *STATES && (protocol || number == TCP_LISTEN))
		return STATES[number];
	sprintf(into, "%u", number);
	return into;
}

/* How long it is; 0 for an end that has neither address nor port. */
static int address(char *into, int family, const unsigned char *packed, uint16_t port)
{
	static const unsigned char nowhere[16];
	char *at = into;
	int each;

	if (port == 0 && memcmp(packed, nowhere, family == AF_INET ? 4 : 16) == 0)
		return 0;
	if (family == AF_INET) {
		for (each = 0; each < 4; each++) {
			at += decimal(at, packed[each]);
			*at++ = each < 3 ? '.' : ':';
		}
	} else {
		*at++ = '[';
		inet_ntop(family, packed, at, INET6_ADDRSTRLEN);
		at += strlen(at);
		*at++ = ']';
		*at++ = ':';
	}
	return at + decimal(at, ntohs(port)) - into;
}

/* What the kernel tells of a unix socket beside its state, and how long it is; NULL when it does not. */
static const void *attribute(const struct answer *answer, int type, int *length)
{
	const char *at = (const char *)NLMSG_DATA(answer->message) + sizeof(struct unix_diag_msg);
	const char *end = (const char *)answer->message + answer->message->nlmsg_len;

	while (end - at >= NLA_HDRLEN) {
		const struct nlattr *told = (const void *)at;

		if (told->nla_len < NLA_HDRLEN || told->nla_len > end - at)
			break;
		*length = told->nla_len - NLA_HDRLEN;
		if (told->nla_type == type)
			return at + NLA_HDRLEN;
		at += NLA_ALIGN(told->nla_len);
	}
	return NULL;
}

/* How long it is: 0 of a socket without a name, or -1 of one whose name is not ASCII. */
static int unix_name(char *into, const struct answer *answer)
{
	int length = 0, each;
	const void *name = attribute(answer, UNIX_DIAG_NAME, &length);

	if (name == NULL || length == 0)
		return 0;
	if (length > NAME)
		return -1;
	memcpy(into, name, length);
	if (*into == 0)
		*into = '@'; /* the abstract namespace, in which a NUL is a letter */
	else
		while (length && into[length - 1] == 0)
			length--;
	for (each = 0; each < length; each++)
		if (into[each] & 0x80)
			return -1;
	return length;
}

static int link_of_socket(char *into, uint64_t inode)
{
	static const char BEFORE[] = "socket:[";
	int length = strlen(BEFORE);

	memcpy(into, BEFORE, length);
	length += decimal(into + length, inode);
	into[length++] = ']';
	return length;
}

/* After the socket's descriptor; NULL when the tables do not tell all of it. */
static unsigned char *socket_descriptor(unsigned char *at, const struct tables *tables, int fd, uint64_t device,
					uint64_t inode)
{
	const struct answer *answer = find(tables, inode), *peer;
	char link[NAME], local[NAME], remote[NAME], state[16];
	int local_length, remote_length = 0, length;
	const char *kind;
	unsigned int state_number;

	if (answer == NULL)
		return NULL;
	if (answer->protocol == 0) {
		const struct unix_diag_msg *told = NLMSG_DATA(answer->message);
		const uint32_t *other = attribute(answer, UNIX_DIAG_PEER, &length);

		kind = "unix";
		state_number = told->udiag_state;
		local_length = unix_name(local, answer);
		if (other && *other) {
			peer = find(tables, *other);
			if (peer)
				remote_length = unix_name(remote, peer);
			if (remote_length == 0)
				remote_length = link_of_socket(remote, *other);
		}
		if (local_length < 0 || remote_length < 0)
			return NULL;
	} else {
		const struct inet_diag_msg *told = NLMSG_DATA(answer->message);
		const struct inet_diag_sockid *id = &told->id;

		kind = answer->protocol == IPPROTO_TCP ? "tcp" : "udp";
		state_number = told->idiag_state;
		local_length = address(local, told->idiag_family, (const void *)id->idiag_src, id->idiag_sport);
		remote_length = address(remote, told->idiag_family, (const void *)id->idiag_dst, id->idiag_dport);
	}
	at = descriptor(at, 8, fd, kind, link, link_of_socket(link, inode), device, inode);
	at = string(string(at, "state"), state_name(state, answer->protocol, state_number));
	at = letters(string(at, "local"), local, local_length);
	return letters(string(at, "peer"), remote, remote_length);
}

/* ---- the walk */

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

/* What is left for later: a socket, or with inode 0 what has to be looked at again. */
struct left {
	int fd;
	uint64_t inode;
};

/* After the descriptor of a pipe or a plain file. Of anything else nothing is written: `left` has it, and `at` is
 * returned as it was. NULL, with the error number, when the kernel does not tell. */
static unsigned char *look(unsigned char *at, int links, const char *name, uint64_t device_of_pipes, struct left *left)
{
	static const char SOCKET[] = "socket:[", PIPE[] = "pipe:[", MEMFD[] = "/memfd:", DELETED[] = " (deleted)";
	const ssize_t suffix = strlen(DELETED);
	char link[PATH_MAX + 1];
	struct stat status;
	int fd = atoi(name), deleted;
	ssize_t length = readlinkat(links, name, link, PATH_MAX);

	if (length < 0)
		return NULL;
	link[length] = 0;
	*left = (struct left){ fd, 0 };
	if (begins(link, SOCKET)) {
		left->inode = strtoull(link + strlen(SOCKET), NULL, 10);
		return at;
	}
	if (begins(link, PIPE))
		return descriptor(at, 5, fd, "pipe", link, length, device_of_pipes,
				  strtoull(link + strlen(PIPE), NULL, 10));
	if (*link != '/' || begins(link, MEMFD) || !ascii(link))
		return at;
	if (fstatat(links, name, &status, 0) < 0)
		return errno == ENOENT || errno == ESRCH ? NULL : at;
	deleted = length > suffix && strcmp(link + length - suffix, DELETED) == 0;
	if (!S_ISREG(status.st_mode) || (deleted && status.st_nlink > 0))
		return at;
	length -= deleted ? suffix : 0;
	at = descriptor(at, 5 + deleted, fd, "file", link, length, status.st_dev, status.st_ino);
	return deleted ? truth(string(at, "deleted")) : at;
}

/* Adds the sockets that the tables have, and takes them out of what is left. */
static unsigned char *sockets(unsigned char *at, const unsigned char *end, struct tables *tables, struct left *left,
			      size_t *count, uint64_t device)
{
	size_t each, kept, unknown;
	unsigned char *after;

	for (;;) {
		for (each = kept = unknown = 0; each < *count; each++) {
			after = NULL;
			if (left[each].inode) {
				if (end - at < LARGEST)
					return NULL;
				after = socket_descriptor(at, tables, left[each].fd, device, left[each].inode);
				unknown += after == NULL;
			}
			if (after)
				at = after;
			else
				left[kept++] = left[each];
		}
		*count = kept;
		if (unknown == 0 || tables->asked == ALL)
			return at;
		ask(tables, FAMILIES[tables->asked].family, FAMILIES[tables->asked].protocol);
		tables->asked++;
	}
}

static unsigned char *what_is_left(unsigned char *at, const unsigned char *end, const struct left *left, size_t count)
{
	size_t each, unknown = 0;

	if ((size_t)(end - at) < 2 * LENGTH + count * LEFT)
		return NULL;
	for (each = 0; each < count; each++)
		unknown += left[each].inode != 0;
	at = array(at, unknown);
	for (each = 0; each < count; each++) {
		if (left[each].inode) {
			*at++ = 0x92;
			at = integer(integer(at, left[each].fd), left[each].inode);
		}
	}
	at = array(at, count - unknown);
	for (each = 0; each < count; each++)
		if (left[each].inode == 0)
			at = integer(at, left[each].fd);
	return at;
}

/* How many bytes were written into `out`; 0 when they do not fit into `size`; or an error number, negative. Without
 * `tables` no socket is known. */
long seatbelt_walk(int pid, uint64_t device_of_pipes, uint64_t device_of_sockets, struct tables *tables,
		   unsigned char *out, size_t size)
{
	const unsigned char *end = out + size;
	unsigned char *at = out + 1 + LENGTH, *after;
	struct left *left = NULL, *more;
	size_t count = 0, room = 0, entries = 0;
	struct dirent *entry;
	char path[32];
	DIR *links;
	int error = 0, ourselves = pid == getpid();

	snprintf(path, sizeof path, "/proc/%d/fd", pid);
	links = opendir(path);
	if (links == NULL)
		return -errno;
	while (at && (errno = 0, entry = readdir(links)) != NULL) {
		if (*entry->d_name == '.' || (ourselves && atoi(entry->d_name) == dirfd(links)))
			continue;
		if (count == room) {
			room = room ? 2 * room : 64;
			more = realloc(left, room * sizeof *left);
			if (more == NULL)
				break; /* ENOMEM */
			left = more;
		}
		after = NULL;
		if (end - at >= LARGEST) {
			after = look(at, dirfd(links), entry->d_name, device_of_pipes, &left[count]);
			if (after == NULL && (errno == ENOENT || errno == ESRCH))
				continue; /* closed since the listing */
			if (after == NULL)
				break;
			count += after == at;
			entries += after != at;
		}
		at = after;
	}
	if (at)
		error = errno; /* 0 after the last entry: readdir(3) */
	closedir(links);
	if (error == 0 && at && tables) {
		size_t before = count;

		at = sockets(at, end, tables, left, &count, device_of_sockets);
		entries += before - count;
	}
	if (error == 0 && at)
		at = what_is_left(at, end, left, count);
	free(left);
	if (error)
		return -error;
	if (at == NULL)
		return 0;
	*out = 0x93;
	array(out + 1, entries);
	return at - out;
}
