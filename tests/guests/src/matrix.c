/* Rows of a product of matrices of 64-bit integers, `n` of them: multiplications, loads by rows and by columns. */
#include "workload.h"

enum { SIZE = 64 };

static int64_t a[SIZE][SIZE], b[SIZE][SIZE], c[SIZE][SIZE];

uint64_t run(uint64_t n, uint64_t *first, uint64_t *second)
{
    (void)first;
    (void)second;
    for (int64_t i = 0; i < SIZE; i++)
        for (int64_t j = 0; j < SIZE; j++) {
            a[i][j] = i * 3 - j;
            b[i][j] = j * 5 + i - 100;
        }
    uint64_t sum = 1;
    for (uint64_t row = 0; row < n; row++) {
        int64_t *from = a[row % SIZE], *to = c[row % SIZE];
        for (int j = 0; j < SIZE; j++) {
            int64_t cell = 0;
            for (int k = 0; k < SIZE; k++)
                cell += from[k] * b[k][j];
            to[j] = cell;
        }
        sum = mix(sum, (uint64_t)to[row * 7 % SIZE]);
        /* The next time round, the product is of something else. */
        from[row % SIZE] += (int64_t)(sum & 15);
    }
    return sum;
}
