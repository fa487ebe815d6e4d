"""Which exits of a VM's vCPUs are told: the first of each reason in a tenth of a second, with how many were left out.

A guest can leave a hundred thousand times a second, and what few do is not to be buried under what many do.
"""

from __future__ import annotations

import time

from vmmd.kvm.exits import Exit
from vmmd.kvm.observer import Note, VcpuExit

SAMPLE_NS = 100_000_000


class ExitSamples:
    """The exits of one VM.

    Args:
        note: told of those that are told.
    """

    def __init__(self, note: Note) -> None:
        self._note = note
        self._by_reason: dict[str, tuple[int, int]] = {}

    def saw(self, vcpu: int, exit_: Exit) -> None:
        """Take an exit that KVM_RUN has returned."""
        next_ns, left_out = self._by_reason.get(exit_.reason, (0, 0))
        now_ns = time.monotonic_ns()
        if now_ns < next_ns:
            self._by_reason[exit_.reason] = (next_ns, left_out + 1)
            return
        self._by_reason[exit_.reason] = (now_ns + SAMPLE_NS, 0)
        self._note(VcpuExit(vcpu, exit_, left_out))
