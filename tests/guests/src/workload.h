/* What every workload is: one function, whose result depends on its count alone.
 *
 * The same source is compiled for the guest and for the host. So a workload calls nothing of a C library, folds no
 * address into its result, and leaves starting, ending and printing to what is linked around it.
 */
#ifndef WORKLOAD_H
#define WORKLOAD_H

#include <stddef.h>
#include <stdint.h>

/* How many words each of the two areas has that `run` is given. */
enum { AREA_WORDS = 1024 };

/* Do work in proportion to `n`, and return a checksum of all of it. */
uint64_t run(uint64_t n, uint64_t *first, uint64_t *second);

/* Step a xorshift generator; its state is never 0. */
static inline uint64_t next_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

/* Add a value to a checksum; the order of values counts. */
static inline uint64_t mix(uint64_t sum, uint64_t value)
{
    return ((sum ^ value) + (sum >> 29)) * 0x9e3779b97f4a7c15u;
}

#endif
