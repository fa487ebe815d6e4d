# Where a guest begins and ends on `qemu-system-riscv64 -M virt -bios none`, whose test device ends the emulator.

    .section .text.start, "ax"
    .globl _start, done
_start:
    la      sp, stack_top
    call    guest_main
done:
    li      t0, 0x100000
    li      t1, 0x5555
    sw      t1, 0(t0)
    j       done
