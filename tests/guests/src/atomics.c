/* Atomic operations on one cache line, `n` rounds of each kind: AMOs, and compare-and-swap, which is LR and SC. */
#include "workload.h"

static uint64_t wide;
static uint32_t narrow;

uint64_t run(uint64_t n, uint64_t *first, uint64_t *second)
{
    (void)first;
    (void)second;
    uint64_t sum = 1;
    wide = 1;
    narrow = 2;
    for (uint64_t i = 0; i < n; i++) {
        sum += __atomic_fetch_add(&wide, i, __ATOMIC_RELAXED);
        sum ^= __atomic_fetch_xor(&wide, sum, __ATOMIC_ACQ_REL);
        sum += __atomic_fetch_add(&narrow, (uint32_t)i, __ATOMIC_SEQ_CST);
        sum ^= __atomic_exchange_n(&narrow, (uint32_t)sum, __ATOMIC_ACQUIRE);
        uint64_t expected = __atomic_load_n(&wide, __ATOMIC_ACQUIRE);
        while (!__atomic_compare_exchange_n(&wide, &expected, expected * 3 + i, 0, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED))
            ;
        sum += __atomic_fetch_or(&narrow, 0x10, __ATOMIC_RELAXED) + __atomic_fetch_and(&wide, ~7ul, __ATOMIC_RELEASE);
    }
    return mix(mix(sum, wide), narrow);
}
