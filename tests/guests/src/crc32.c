/* CRC-32, with its table of 256 words, over `n` bytes: a load that waits for the load before it. */
#include "workload.h"

enum { TEXT = 1024 };

static uint32_t table[256];
static uint8_t text[TEXT];

static void prepare(void)
{
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t crc = byte;
        for (int bit = 0; bit < 8; bit++)
            crc = crc & 1 ? crc >> 1 ^ 0xedb88320u : crc >> 1;
        table[byte] = crc;
    }
    uint64_t state = 88172645463325252u;
    for (int i = 0; i < TEXT; i++)
        text[i] = (uint8_t)next_random(&state);
}

uint64_t run(uint64_t n, uint64_t *first, uint64_t *second)
{
    (void)first;
    (void)second;
    prepare();
    uint32_t crc = 0xffffffffu;
    while (n > 0) {
        uint64_t size = n < TEXT ? n : TEXT;
        for (uint64_t i = 0; i < size; i++)
            crc = table[(crc ^ text[i]) & 255] ^ crc >> 8;
        n -= size;
    }
    return mix(1, crc ^ 0xffffffffu);
}
