/* Fibonacci numbers by recursion, `n` of them: calls, returns and a stack. */
#include "workload.h"

__attribute__((noinline)) static uint64_t fibonacci(uint64_t number)
{
    return number < 2 ? number : fibonacci(number - 1) + fibonacci(number - 2);
}

uint64_t run(uint64_t n, uint64_t *first, uint64_t *second)
{
    (void)first;
    (void)second;
    uint64_t sum = 1;
    for (uint64_t i = 0; i < n; i++)
        sum = mix(sum, fibonacci(i % 20));
    return sum;
}
