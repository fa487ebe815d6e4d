/* `n` pairs of loads, one from each area: where the areas lie in different memslots, every load is of another slot. */
#include "workload.h"

uint64_t run(uint64_t n, uint64_t *first, uint64_t *second)
{
    for (uint64_t i = 0; i < AREA_WORDS; i++) {
        first[i] = i * 7;
        second[i] = i * 11 + 3;
    }
    const volatile uint64_t *one = first, *other = second;
    uint64_t sum = 1;
    for (uint64_t i = 0; i < n; i++) {
        sum += one[i % AREA_WORDS];
        sum ^= other[i * 5 % AREA_WORDS];
    }
    return mix(sum, n);
}
