/* Pointers that are followed `n` times through 64 MiB: a cycle over all of its cache lines, in random order.
 *
 * Making the cycle takes its time too, the same for every `n`: what a step costs is the difference of two runs.
 */
#include "workload.h"

enum { NODES = 1 << 20 };

struct node {
    struct node *next;
    uint64_t number;
    uint64_t unused[6];
};

static struct node nodes[NODES];

uint64_t run(uint64_t n, uint64_t *first, uint64_t *second)
{
    (void)first;
    (void)second;
    uint64_t state = 88172645463325252u, sum = 1;
    for (uint64_t i = 0; i < NODES; i++) {
        nodes[i].next = &nodes[i];
        nodes[i].number = i;
    }
    /* Sattolo's shuffle: as Fisher and Yates's, but no node keeps its place, and all are one cycle. */
    for (uint64_t i = NODES - 1; i > 0; i--) {
        uint64_t j = (next_random(&state) >> 32) * i >> 32;
        struct node *kept = nodes[i].next;
        nodes[i].next = nodes[j].next;
        nodes[j].next = kept;
    }
    struct node *at = nodes;
    for (uint64_t i = 0; i < n; i++) {
        at = at->next;
        sum += at->number ^ i;
    }
    return mix(sum, at->number);
}
