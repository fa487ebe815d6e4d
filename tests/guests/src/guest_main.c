/* What is linked around a workload in a guest: its arguments, as symbols that whoever starts it may write to, its
 * console, and the four functions that GCC calls by itself.
 *
 * COUNT is what `count` is where nobody writes to it. With REPORT the checksum is printed when the work is done.
 */
#include "console.h"
#include "workload.h"

static uint64_t own_areas[2][AREA_WORDS];

volatile uint64_t count = COUNT;
uint64_t *volatile areas[2] = {own_areas[0], own_areas[1]};

uint64_t guest_main(void)
{
    uint64_t sum = run(count, areas[0], areas[1]);
#ifdef REPORT
    print_hex(sum);
    print("\n");
#endif
    return sum;
}

#ifdef UART
void console_put(char byte)
{
    *(volatile uint8_t *)UART = (uint8_t)byte;
}
#else
void console_put(char byte)
{
    /* outb byte, 0(port): port I/O is T64's own, in RISC-V's custom-0 space; rd is the source. */
    __asm__ volatile(".insn i 0x0b, 4, %0, 0(%1)" : : "r"(byte), "r"(0x3f8L));
}
#endif

void *memcpy(void *to, const void *from, size_t size)
{
    uint8_t *out = to;
    const uint8_t *in = from;
    while (size-- > 0)
        *out++ = *in++;
    return to;
}

void *memmove(void *to, const void *from, size_t size)
{
    uint8_t *out = to;
    const uint8_t *in = from;
    if (out <= in)
        return memcpy(to, from, size);
    while (size-- > 0)
        out[size] = in[size];
    return to;
}

void *memset(void *to, int byte, size_t size)
{
    uint8_t *out = to;
    while (size-- > 0)
        *out++ = (uint8_t)byte;
    return to;
}

int memcmp(const void *one, const void *other, size_t size)
{
    const uint8_t *a = one, *b = other;
    for (; size > 0; size--, a++, b++)
        if (*a != *b)
            return *a - *b;
    return 0;
}
