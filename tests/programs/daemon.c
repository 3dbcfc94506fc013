/* daemon: opens a file, then leaves its parent again and again, as daemon(3) does: each has ended before its child goes
   on, or has not. Prints `PID NUMBER` and waits for standard input to end. */

#define _DEFAULT_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

static __attribute__((noinline)) int opened(void) {
    int number = open("/etc/passwd", O_RDONLY);

    return number;
}

int main(void) {
    int number = opened();

    for (int times = 0; times < 20; times++)
        if (daemon(1, 1) != 0)
            return 1;
    printf("%d %d\n", (int)getpid(), number);
    fflush(stdout);
    while (getchar() != EOF)
        ;
    return 0;
}
