/* A loop of arithmetic in registers: adding, shifting, multiplying, comparing. No memory. */
#include "workload.h"

uint64_t run(uint64_t n, uint64_t *first, uint64_t *second)
{
    (void)first;
    (void)second;
    uint64_t a = 1, b = 0x0123456789abcdefu, c = 0;
    for (uint64_t i = 0; i < n; i++) {
        a += b ^ i;
        b = (b << 7 | b >> 57) + a;
        c ^= a * 5;
        if ((int64_t)b < (int64_t)c)
            c += 3;
    }
    return mix(mix(a, b), c);
}
