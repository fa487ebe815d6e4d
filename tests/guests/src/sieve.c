/* The sieve of Eratosthenes over `n` numbers, in passes over at most a mebibyte: bytes, strides, short loops. */
#include "workload.h"

enum { MOST = 1 << 20 };

static uint8_t composite[MOST];

static uint64_t sieve(uint64_t size)
{
    for (uint64_t i = 0; i < size; i++)
        composite[i] = 0;
    for (uint64_t i = 2; i * i < size; i++)
        if (!composite[i])
            for (uint64_t j = i * i; j < size; j += i)
                composite[j] = 1;
    uint64_t primes = 0;
    for (uint64_t i = 2; i < size; i++)
        primes += !composite[i];
    return primes;
}

uint64_t run(uint64_t n, uint64_t *first, uint64_t *second)
{
    (void)first;
    (void)second;
    uint64_t sum = 1;
    while (n > 0) {
        uint64_t size = n < MOST ? n : MOST;
        sum = mix(sum, sieve(size));
        n -= size;
    }
    return sum;
}
