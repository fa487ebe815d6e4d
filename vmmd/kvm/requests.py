"""Requests to a vCPU: bits in its context's request word, as in KVM, and who clears which.

A vCPU looks at them before it enters guest mode and at least once in every chunk of instructions. There is no kick
without one: nothing else keeps a vCPU that was kicked from entering again at once.
"""

from __future__ import annotations

KVM_REQ_TLB_FLUSH = 1 << 0
"""Leave guest mode once, and take the newest view. The vCPU clears it."""

KVM_REQ_VM_DEAD = 1 << 1
"""The VM is being destroyed: KVM_RUN ends. Nobody clears it."""

KVM_REQ_DIRTY_RING_SOFT_FULL = 1 << 3
"""The dirty ring is full softly: KVM_RUN ends with KVM_EXIT_DIRTY_RING_FULL, and clears it once there is room."""

KVM_REQ_EVENT = 1 << 14
"""Interrupts have come or gone: leave guest mode and look. The vCPU clears it."""

KVM_REQ_USERSPACE_KICK = 1 << 40
"""A raw kick, as proposed: KVM_RUN ends with EINTR. Sticky: only the raw resume clears it."""

KVM_REQ_HOLD = 1 << 33
"""A hold is open: KVM_RUN parks inside. The resume clears it."""

KVM_REQ_RUN_OVER = 1 << 35
"""The KVM_RUN in flight has been ended from outside: whoever has the vCPU gives it back. Who has it clears it."""

KVM_REQ_PAUSE = 1 << 34
"""Somebody uses the registers: KVM_RUN parks inside. Whoever set it clears it."""

SIGNAL_PENDING = 1 << 63
"""KVM_RUN ends with EINTR, as for a thread with a signal. KVM_RUN clears it."""

PARKING = KVM_REQ_HOLD | KVM_REQ_PAUSE
"""Requests that keep KVM_RUN inside, without running."""

ENDING = KVM_REQ_VM_DEAD | KVM_REQ_USERSPACE_KICK | KVM_REQ_RUN_OVER | SIGNAL_PENDING
"""Requests that end KVM_RUN, a parked one too."""

COMPLETING = KVM_REQ_USERSPACE_KICK | KVM_REQ_DIRTY_RING_SOFT_FULL | SIGNAL_PENDING
"""Requests that are looked at behind the completion of a pending exit, as in KVM, and keep no vCPU from it."""
