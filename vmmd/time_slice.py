"""The event loop's time slice: a short one, so that its thread runs as soon as it is woken.

Where guests use every core, a thread that wakes waits for the end of somebody's slice, though workers give way by their
nice values; one that has asked for a shorter slice than theirs does not. Linux grants that since 6.12; before, and
where the system call has another number, nothing changes. No thread and no process inherits it.
"""

import ctypes
import os
import platform
import struct

_SYS_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}

_ATTRIBUTES = struct.Struct("<IIQiIQQQII")
"""struct sched_attr: size, policy, flags, nice, priority, runtime, deadline, period, and both clamps of utilisation."""

_SCHED_OTHER = 0
_SCHED_FLAG_RESET_ON_FORK = 1

SLICE_NS = 100_000
"""The shortest that the kernel grants."""


def ask_for_short_slice() -> bool:
    """Ask for it, for the calling thread; tell whether the system call was taken.

    A kernel before 6.12 takes the call too, and has one slice for all.
    """
    number = _SYS_SCHED_SETATTR.get(platform.machine())
    if number is None or platform.system() != "Linux":
        return False
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    attributes = _ATTRIBUTES.pack(
        _ATTRIBUTES.size, _SCHED_OTHER, _SCHED_FLAG_RESET_ON_FORK, nice, 0, SLICE_NS, 0, 0, 0, 0
    )
    return int(ctypes.CDLL(None).syscall(number, 0, attributes, 0)) == 0
