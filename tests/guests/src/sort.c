/* Quick sort of `n` random numbers, in rounds of at most 65,536: compares and branches that nobody can predict. */
#include "workload.h"

enum { MOST = 1 << 16, SMALL = 12 };

static int64_t values[MOST];

static void swap(int64_t *one, int64_t *other)
{
    int64_t kept = *one;
    *one = *other;
    *other = kept;
}

static void insertion_sort(int64_t *low, int64_t *high)
{
    for (int64_t *at = low + 1; at <= high; at++) {
        int64_t value = *at;
        int64_t *to = at;
        for (; to > low && to[-1] > value; to--)
            *to = to[-1];
        *to = value;
    }
}

static void quick_sort(int64_t *low, int64_t *high)
{
    while (high - low > SMALL) {
        int64_t *middle = low + (high - low) / 2;
        if (*middle < *low)
            swap(middle, low);
        if (*high < *low)
            swap(high, low);
        if (*high < *middle)
            swap(high, middle);
        int64_t pivot = *middle;
        int64_t *left = low, *right = high;
        while (left <= right) {
            while (*left < pivot)
                left++;
            while (*right > pivot)
                right--;
            if (left <= right)
                swap(left++, right--);
        }
        /* The shorter part by recursion, so that the stack stays shallow. */
        if (right - low < high - left) {
            quick_sort(low, right);
            low = left;
        } else {
            quick_sort(left, high);
            high = right;
        }
    }
    insertion_sort(low, high);
}

uint64_t run(uint64_t n, uint64_t *first, uint64_t *second)
{
    (void)first;
    (void)second;
    uint64_t state = 2463534242u, sum = 1;
    while (n > 0) {
        uint64_t size = n < MOST ? n : MOST;
        for (uint64_t i = 0; i < size; i++)
            values[i] = (int64_t)next_random(&state);
        quick_sort(values, values + size - 1);
        for (uint64_t i = 0; i < size; i += 1 + size / 64)
            sum = mix(sum, (uint64_t)values[i]);
        for (uint64_t i = 1; i < size; i++)
            sum += values[i - 1] > values[i];
        n -= size;
    }
    return sum;
}
