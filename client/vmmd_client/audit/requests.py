"""KVM's ioctl requests: the names that recorders print, and the numbers that they print where they know no name.

A number stands as it is (`strace -X raw`, the kernel's tracepoints), with its name in a comment (`-X verbose`), or
taken apart (`_IOC(_IOC_WRITE, 0xae, 0x46, 0x20)`, a strace that is older than the request; `(0xae, 0x49, 0xa0)`, a
perf that is). The numbers are those of
Linux's uapi, _IO, _IOW, _IOR and _IOWR of KVMIO 0xae; their sizes say nothing more, so the type and the number decide.
"""

import re
from functools import lru_cache

KVMIO = 0xAE

SLOT_CALLS = frozenset({"KVM_SET_USER_MEMORY_REGION", "KVM_SET_USER_MEMORY_REGION2"})
LOG_CALLS = frozenset({"KVM_GET_DIRTY_LOG", "KVM_CLEAR_DIRTY_LOG", "KVM_RESET_DIRTY_RINGS"})
MAKERS = {"KVM_CREATE_VM": "vm", "KVM_CREATE_VCPU": "vcpu"}
WANTED = frozenset({"KVM_RUN"}) | SLOT_CALLS | LOG_CALLS | MAKERS.keys()

_NAMES = {
    0x01: "KVM_CREATE_VM",
    0x41: "KVM_CREATE_VCPU",
    0x42: "KVM_GET_DIRTY_LOG",
    0x46: "KVM_SET_USER_MEMORY_REGION",
    0x49: "KVM_SET_USER_MEMORY_REGION2",
    0x80: "KVM_RUN",
    0xC0: "KVM_CLEAR_DIRTY_LOG",
    0xC7: "KVM_RESET_DIRTY_RINGS",
}

_NUMBER = re.compile(r"0x[0-9a-f]{1,16}")
_TAKEN_APART = re.compile(r"(?:_IO[CRW]*)?\((?:[A-Z_|]{1,40}, )?(0x[0-9a-f]{1,8}), (0x[0-9a-f]{1,8})\b")


@lru_cache(maxsize=4096)
def name_of(printed: str) -> str:
    """Give the name of a request as it was printed; what is not KVM's, or is a KVM request without a name here, stays.

    Args:
        printed: "KVM_RUN", "0xae80", "_IOC(_IOC_NONE, 0xae, 0x80, 0)" or "(0xae, 0x80, 0)".
    """
    if printed.startswith(("_IO", "(")):
        match = _TAKEN_APART.match(printed)
        return printed if match is None else _name(int(match[1], 16), int(match[2], 16), printed)
    if _NUMBER.fullmatch(printed):
        number = int(printed, 16)
        return _name(number >> 8 & 0xFF, number & 0xFF, printed)
    return printed


def _name(kind: int, number: int, printed: str) -> str:
    return _NAMES.get(number, f"KVM_{number:#x}") if kind == KVMIO else printed
