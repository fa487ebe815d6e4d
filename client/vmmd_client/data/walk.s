# A guest that knows what its memory has to hold, and counts what it finds otherwise.
#
# It walks for good over a list of pages and visits some words of each. A visit reads the word, which must be what the
# last pass stored; stores what this pass has for it; and reads it back. What a word holds is the pass's number times an
# odd constant, cut to 62 bits, exclusive-or the word's address: never all ones, which is what a load without memory reads.
#
#   a0  first entry of the list of pages (gpa, 8 bytes each)      a3  bytes from one visited word to the next
#   a1  end of the list                                           a4  the odd constant
#   a2  counters: passes at 0, wrong visits at 8                  s3  what this vCPU's pass 0 stores at address 0
#
# A wrong visit is counted once: the word is stored again until it reads back right, so the next pass finds it healed.

        li      s5, 0x3fffffffffffffff
        li      s6, 4096
        li      s0, 0
        li      s1, 0

        mv      t0, a0                  # pass 0 only stores
fill:
        ld      t1, 0(t0)
        add     t2, t1, s6
fill_word:
        xor     t4, s3, t1
        sd      t4, 0(t1)
        add     t1, t1, a3
        bltu    t1, t2, fill_word
        addi    t0, t0, 8
        bltu    t0, a1, fill

pass:
        mv      s2, s3
        add     s3, s3, a4
        and     s3, s3, s5
        mv      t0, a0
page:
        ld      t1, 0(t0)
        add     t2, t1, s6
word:
        xor     t3, s2, t1
        xor     t4, s3, t1
        ld      t5, 0(t1)
        bne     t5, t3, wrong
        sd      t4, 0(t1)
        ld      t5, 0(t1)
        bne     t5, t4, wrong
next:
        add     t1, t1, a3
        bltu    t1, t2, word
        addi    t0, t0, 8
        bltu    t0, a1, page
        addi    s0, s0, 1
        sd      s0, 0(a2)
        j       pass

wrong:
        addi    s1, s1, 1
        sd      s1, 8(a2)
heal:
        sd      t4, 0(t1)
        ld      t5, 0(t1)
        bne     t5, t4, heal
        j       next
