/* Printing, for what is there to print: the guest that says hello, and the report of a checksum. */
#ifndef CONSOLE_H
#define CONSOLE_H

#include <stdint.h>

/* Write one byte; each way to run has its own. */
void console_put(char byte);

void print(const char *text);
void print_decimal(uint64_t value);
void print_hex(uint64_t value);

#endif
