/* leaky: a small SMTP server in C that leaks what it is told to.

       cc -g -O1 -o leaky leaky.c
       ./leaky PORT [file] [socket] [heap] [zombie]

   One process serves all sessions with poll(2), and has each session that ended written down by a child. It knows the
   users of the system, at leaky.test; it takes no message on: the end of the data is answered 451. A leak is a step
   left out:

       file     the file of users is not closed when the recipient is refused
       socket   the connection is not closed when the client hangs up without QUIT
       heap     the 64 bytes of a session's name are not freed
       zombie   the child is not waited for

   Without any of them every session leaves everything as it was. Bad arguments: one line, status 2. */

#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define USERS "/etc/passwd"
#define DOMAIN "@leaky.test>"
#define MOST_SESSIONS 256
#define NAME_BYTES 64

enum leak { LEAK_FILE = 1, LEAK_SOCKET = 2, LEAK_HEAP = 4, LEAK_ZOMBIE = 8 };

struct session {
    char *name;
    char line[1024];
    size_t length; /* bytes of `line` that wait for their end */
    int in_data;
};

static int leaks;
static struct pollfd polled[MOST_SESSIONS + 1]; /* the listener, and each session's connection */
static struct session sessions[MOST_SESSIONS + 1];
static nfds_t count = 1;

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static void reply(int connection, const char *text) {
    /* Who does not read what little is said to him has gone. */
    send(connection, text, strlen(text), MSG_NOSIGNAL | MSG_DONTWAIT);
}

/* Whether `recipient`, as in `root@leaky.test>`, is a user here. */
static int is_known(const char *recipient) {
    char line[512];
    FILE *file = fopen(USERS, "re");
    size_t length = strcspn(recipient, "@>");
    int is_ours = strcasecmp(recipient + length, DOMAIN) == 0;

    if (file == NULL)
        return 0;
    while (fgets(line, sizeof line, file) != NULL)
        if (is_ours && strncmp(line, recipient, length) == 0 && line[length] == ':') {
            fclose(file);
            return 1;
        }
    if (!(leaks & LEAK_FILE))
        fclose(file);
    return 0;
}

static void write_down(const struct session *session) {
    pid_t child = fork();

    if (child == 0)
        _exit(session->name == NULL); /* a real one would write a line somewhere */
    if (child > 0 && !(leaks & LEAK_ZOMBIE))
        waitpid(child, NULL, 0);
}

static void begin(int listener) {
    struct session *session = &sessions[count];
    int connection = accept(listener, NULL, NULL);

    if (connection < 0)
        return; /* the client has gone again, or there are too many descriptors */
    if (count > MOST_SESSIONS) {
        reply(connection, "421 too many sessions\r\n");
        close(connection);
        return;
    }
    memset(session, 0, sizeof *session);
    session->name = malloc(NAME_BYTES);
    if (session->name == NULL)
        fail("malloc");
    snprintf(session->name, NAME_BYTES, "session on descriptor %d", connection);
    polled[count++] = (struct pollfd){.fd = connection, .events = POLLIN};
    reply(connection, "220 leaky.test\r\n");
}

static void end(nfds_t number, int said_quit) {
    write_down(&sessions[number]);
    if (said_quit || !(leaks & LEAK_SOCKET))
        close(polled[number].fd);
    if (!(leaks & LEAK_HEAP))
        free(sessions[number].name);
    count--;
    polled[number] = polled[count];
    sessions[number] = sessions[count];
}

/* One command or one line of a message. Returns whether it was QUIT. */
static int obey(int connection, struct session *session, const char *line) {
    if (session->in_data) {
        if (strcmp(line, ".") == 0) {
            session->in_data = 0;
            reply(connection, "451 no message is taken on here\r\n");
        }
    } else if (strncasecmp(line, "RCPT TO:<", 9) == 0)
        reply(connection, is_known(line + 9) ? "250 ok\r\n" : "550 no such user\r\n");
    else if (strncasecmp(line, "DATA", 4) == 0) {
        session->in_data = 1;
        reply(connection, "354 go on\r\n");
    } else if (strncasecmp(line, "QUIT", 4) == 0) {
        reply(connection, "221 bye\r\n");
        return 1;
    } else
        reply(connection, "250 ok\r\n");
    return 0;
}

/* Returns 1 after QUIT, -1 when the client has gone, else 0. */
static int serve(int connection, struct session *session) {
    char *room = session->line + session->length, *line = session->line, *newline;
    ssize_t received = recv(connection, room, sizeof session->line - 1 - session->length, MSG_DONTWAIT);

    if (received <= 0)
        return received < 0 && errno == EAGAIN ? 0 : -1;
    room[received] = '\0';
    while ((newline = strchr(line, '\n')) != NULL) {
        *newline = '\0';
        line[strcspn(line, "\r")] = '\0';
        if (obey(connection, session, line))
            return 1;
        line = newline + 1;
    }
    session->length = strlen(line);
    memmove(session->line, line, session->length + 1);
    return session->length == sizeof session->line - 1 ? -1 : 0; /* no line is as long as that */
}

static int listen_on(const char *port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(port))};
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;

    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (listener < 0)
        fail("socket");
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) < 0)
        fail("bind");
    if (listen(listener, SOMAXCONN) < 0)
        fail("listen");
    return listener;
}

static int leak_called(const char *name) {
    static const char *const names[] = {"file", "socket", "heap", "zombie"};

    for (int number = 0; number < 4; number++)
        if (strcmp(name, names[number]) == 0)
            return 1 << number;
    fprintf(stderr, "leaky: no leak called %s; there is: file socket heap zombie\n", name);
    exit(2);
}

int main(int argc, char **argv) {
    if (argc < 2) {
        fprintf(stderr, "usage: leaky PORT [file] [socket] [heap] [zombie]\n");
        return 2;
    }
    for (int number = 2; number < argc; number++)
        leaks |= leak_called(argv[number]);
    polled[0] = (struct pollfd){.fd = listen_on(argv[1]), .events = POLLIN};
    while (poll(polled, count, -1) >= 0 || errno == EINTR) {
        /* From the last: one that ends is replaced by the last, which has been served already. */
        for (nfds_t number = count - 1; number > 0; number--)
            if (polled[number].revents) {
                int outcome = serve(polled[number].fd, &sessions[number]);
                if (outcome != 0)
                    end(number, outcome > 0);
            }
        if (polled[0].revents)
            begin(polled[0].fd);
    }
    fail("poll");
}
