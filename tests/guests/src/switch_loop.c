/* An interpreter of bytecode with a switch in a loop, as many are written; `n` is how often its program loops. */
#include "workload.h"

enum Op { PUSH, ADD, SUBTRACT, MULTIPLY, XOR, SHIFT, DUPLICATE, SWAP, LOAD, STORE, DECREMENT, JUMP_IF, HALT };

/* Cells: 0 counts down, 1 and 2 are worked on. */
static const uint8_t program[] = {
    LOAD, 1, PUSH, 31, MULTIPLY, LOAD, 0, ADD, DUPLICATE, SHIFT, 7, XOR, STORE, 1,
    LOAD, 2, LOAD, 1, SWAP, SUBTRACT, PUSH, 17, ADD, STORE, 2,
    DECREMENT, 0, JUMP_IF, 0, HALT,
};

static uint64_t cells[4];

static void interpret(const uint8_t *code)
{
    uint64_t stack[16], *top = stack, kept;
    const uint8_t *pc = code;
    for (;;) {
        switch ((enum Op)*pc++) {
        case PUSH:
            *top++ = *pc++;
            break;
        case ADD:
            top--;
            top[-1] += top[0];
            break;
        case SUBTRACT:
            top--;
            top[-1] -= top[0];
            break;
        case MULTIPLY:
            top--;
            top[-1] *= top[0];
            break;
        case XOR:
            top--;
            top[-1] ^= top[0];
            break;
        case SHIFT:
            top[-1] >>= *pc++;
            break;
        case DUPLICATE:
            top[0] = top[-1];
            top++;
            break;
        case SWAP:
            kept = top[-1];
            top[-1] = top[-2];
            top[-2] = kept;
            break;
        case LOAD:
            *top++ = cells[*pc++];
            break;
        case STORE:
            cells[*pc++] = *--top;
            break;
        case DECREMENT:
            *top++ = --cells[*pc++];
            break;
        case JUMP_IF:
            pc = *--top != 0 ? code + *pc : pc + 1;
            break;
        case HALT:
            return;
        }
    }
}

uint64_t run(uint64_t n, uint64_t *first, uint64_t *second)
{
    (void)first;
    (void)second;
    cells[0] = n;
    cells[1] = 1;
    cells[2] = 2;
    if (n > 0)
        interpret(program);
    return mix(cells[1], cells[2]);
}
