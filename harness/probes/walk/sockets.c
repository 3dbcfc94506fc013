/* sockets: states, addresses and peers of the sockets of our own network namespace, by inode (sock_diag(7)). */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <linux/unix_diag.h>

#include "walk.h"

#define RECEIVE (1 << 16) /* the kernel sends half of it at most: netlink_recvmsg() */
#define NAME 128	  /* of a socket: 53 of IPv6 with brackets and a port; 109 of unix(7) with a NUL */

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

struct answer {
	uint32_t inode;
	int protocol; /* 0 for unix(7) */
	const struct nlmsghdr *message;
};

struct received {
	struct received *before;
	unsigned char bytes[];
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

int tables_begin(struct tables *tables)
{
	*tables = (struct tables){ .asked = 0 };
	return pthread_rwlock_init(&tables->lock, NULL);
}

void tables_end(struct tables *tables)
{
	struct received *before;

	for (; tables->last; tables->last = before) {
		before = tables->last->before;
		free(tables->last);
	}
	free(tables->answers);
	pthread_rwlock_destroy(&tables->lock);
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

int tables_lock(struct tables *tables)
{
	pthread_rwlock_rdlock(&tables->lock);
	return tables->asked;
}

void tables_unlock(struct tables *tables)
{
	pthread_rwlock_unlock(&tables->lock);
}

int tables_ask(struct tables *tables, int asked)
{
	if (asked == ALL)
		return 0;
	pthread_rwlock_wrlock(&tables->lock);
	if (tables->asked == asked) {
		ask(tables, FAMILIES[asked].family, FAMILIES[asked].protocol);
		tables->asked++;
	}
	pthread_rwlock_unlock(&tables->lock);
	return 1;
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
	int length = strlen(SOCKET_LINK);

	memcpy(into, SOCKET_LINK, length);
	length += decimal(into + length, inode);
	into[length++] = ']';
	return length;
}

unsigned char *socket_descriptor(unsigned char *at, const struct tables *tables, int fd, uint64_t device, uint64_t inode)
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

