/* allocates: does what each character of its input says, and prints its pid and the bytes that it holds by then, as
   malloc_usable_size(3) has them. */

#define _GNU_SOURCE
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static void *held[100];
static int count;

static void keep(void *block) {
    held[count++] = block;
}

static void obey(char word) {
    void *block = NULL;

    switch (word) {
    case 'm': keep(malloc(1000)); break;
    case 'c': keep(calloc(10, 333)); break;
    case 'a': keep(aligned_alloc(64, 640)); break;
    case 'p': keep(posix_memalign(&block, 128, 777) == 0 ? block : NULL); break;
    case 'r': keep(realloc(realloc(NULL, 100), 5000)); break;
    case 'R': held[0] = reallocarray(held[0], 7, 1000); break;
    case 'f': free(held[--count]); break;
    case 'F': /* the child goes on reading, its parent waits */
        if (fork() != 0)
            for (;;)
                pause();
        keep(malloc(300000)); /* by mmap(2) */
    }
}

int main(void) {
    char word;
    char line[64];

    while (read(0, &word, 1) == 1) {
        size_t bytes = 0;
        obey(word);
        for (int number = 0; number < count; number++)
            bytes += malloc_usable_size(held[number]);
        write(1, line, (size_t)snprintf(line, sizeof line, "%d %zu\n", (int)getpid(), bytes));
    }
    return 0;
}
