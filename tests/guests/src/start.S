# Where a guest begins and ends. A stack pointer that whoever starts it has set stands, so that several vCPUs can each
# have a stack of their own. The checksum is in a0 when `done` is reached.

    .section .text.start, "ax"
    .globl _start, done
_start:
    bnez    sp, 1f
    la      sp, stack_top
1:  call    guest_main
done:
    wfi
    j       done
