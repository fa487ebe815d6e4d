#include "console.h"

void print(const char *text)
{
    while (*text != '\0')
        console_put(*text++);
}

void print_decimal(uint64_t value)
{
    if (value >= 10)
        print_decimal(value / 10);
    console_put((char)('0' + value % 10));
}

void print_hex(uint64_t value)
{
    print("0x");
    for (int shift = 60; shift >= 0; shift -= 4)
        console_put("0123456789abcdef"[value >> shift & 15]);
}
