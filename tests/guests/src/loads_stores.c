/* `n` words that are loaded, worked on and stored again, in an array of 32 KiB: memory that a first cache holds. */
#include "workload.h"

enum { WORDS = 4096 };

static uint64_t words[WORDS];

uint64_t run(uint64_t n, uint64_t *first, uint64_t *second)
{
    (void)first;
    (void)second;
    for (uint64_t i = 0; i < WORDS; i++)
        words[i] = i * i;
    uint64_t sum = 1;
    while (n > 0) {
        uint64_t size = n < WORDS ? n : WORDS;
        for (uint64_t i = 0; i < size; i++) {
            sum += words[i];
            words[i] = sum ^ i;
        }
        n -= size;
    }
    return mix(sum, words[0]);
}
