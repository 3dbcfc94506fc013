/* walk.h: what walk.c and sockets.c share: messages in MessagePack, and the kernel's tables of sockets. */
#ifndef SEATBELT_WALK_H
#define SEATBELT_WALK_H

#include <limits.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define LARGEST (PATH_MAX + 512) /* a descriptor */
#define SOCKET_LINK "socket:["	 /* and the inode */

/* ---- MessagePack; whoever writes has made room before */

static inline unsigned char *number(unsigned char *at, unsigned char type, int bytes, uint64_t value)
{
	*at++ = type;
	while (bytes--)
		*at++ = value >> 8 * bytes;
	return at;
}

static inline unsigned char *integer(unsigned char *at, uint64_t value)
{
	return number(at, 0xcf, 8, value);
}

static inline unsigned char *array(unsigned char *at, uint32_t length)
{
	return number(at, 0xdd, 4, length);
}

static inline unsigned char *bytes(unsigned char *at, const void *of, size_t length)
{
	at = number(at, 0xc5, 2, length);
	memcpy(at, of, length);
	return at + length;
}

static inline unsigned char *letters(unsigned char *at, const char *text, size_t length)
{
	at = number(at, 0xda, 2, length);
	memcpy(at, text, length);
	return at + length;
}

static inline unsigned char *string(unsigned char *at, const char *text)
{
	return letters(at, text, strlen(text));
}

static inline unsigned char *truth(unsigned char *at)
{
	*at++ = 0xc3;
	return at;
}

/* A reports.record.Descriptor, of which so many fields follow in all. */
static inline unsigned char *descriptor(unsigned char *at, int fields, int fd, const char *kind, const char *target,
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

struct tables {
	pthread_rwlock_t lock;
	int asked; /* so many families */
	size_t count;
	struct answer *answers; /* by inode */
	struct received *last;
};

#pragma GCC visibility push(hidden)

int tables_begin(struct tables *); /* an error number; not to be ended then */
void tables_end(struct tables *);

/* How many families were asked for when `tables_lock` gave them to read; several threads may have them. */
int tables_lock(struct tables *);
void tables_unlock(struct tables *);

/* Asks for one family more than were `asked` for, unless somebody did. False when there is none more. */
int tables_ask(struct tables *, int asked);

/* After the socket's descriptor; NULL when the tables, which are locked, do not tell all of it. */
unsigned char *socket_descriptor(unsigned char *at, const struct tables *, int fd, uint64_t device, uint64_t inode);

#pragma GCC visibility pop

#endif
