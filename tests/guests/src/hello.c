/* Says hello on the console `n` times, with numbers in all ways to print them. */
#include "console.h"
#include "workload.h"

uint64_t run(uint64_t n, uint64_t *first, uint64_t *second)
{
    (void)first;
    (void)second;
    for (uint64_t i = 1; i <= n; i++) {
        print("hello, world ");
        print_decimal(i);
        print(" of ");
        print_decimal(n);
        print(": ");
        print_hex(i * 0x123456789abcdefu);
        print("\n");
    }
    return mix(7, n);
}
