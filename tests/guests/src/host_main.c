/* What is linked around a workload on the host: `program count` prints the checksum and the run's nanoseconds. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "console.h"
#include "workload.h"

static uint64_t areas[2][AREA_WORDS];

void console_put(char byte)
{
    putc(byte, stderr);
}

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: %s count\n", argv[0]);
        return 2;
    }
    uint64_t n = strtoull(argv[1], NULL, 0);
    uint64_t start = now_ns();
    uint64_t sum = run(n, areas[0], areas[1]);
    printf("0x%016" PRIx64 " %" PRIu64 "\n", sum, now_ns() - start);
    return 0;
}
