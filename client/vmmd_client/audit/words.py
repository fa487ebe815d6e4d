"""The words of one call as strace prints them, without who made it and when: which request, of what, how it ended.

A recording says the same few things over and over, so each text is worked out once and its `Words` are kept for the
next time. Nothing here knows threads, times or lines, and nothing is guessed: words that are missing are None.
"""

import enum
import re
from dataclasses import dataclass
from functools import lru_cache

from ..slots.memslots import MemFlag, Memslot
from .requests import WANTED, name_of

RESUMED = "<... ioctl resumed>"
_UNFINISHED = "<unfinished ...>"
_DETACHED = "<detached ...>"

_IOCTL = re.compile(r"ioctl\((\d{1,9}|0x[0-9a-f]{1,8})(<[^>]*>{1,3})?, (_IO[A-Z]{0,2}\([^)]{1,80}\)?|\w+)")
_VCPU_FD = re.compile(r"kvm-vcpu:(\d{1,9})")
_VCPU_ID = re.compile(r"KVM_CREATE_VCPU, (\d{1,9}|0x[0-9a-f]{1,8})")
_RESULT = re.compile(r"\)\s+= (-?\d{1,18}|\?)(?:<[^>]*>)?(?: (E\w+))?")
_NUMBER = re.compile(r"0x[0-9a-f]{1,16}|0|[1-9]\d{0,19}")
_REGION = re.compile(
    r"\{slot=(\d{1,10}), flags=([^,]{1,200}), guest_phys_addr=(0x[0-9a-f]{1,16}|0|[1-9]\d{0,19}), "
    r"memory_size=(0x[0-9a-f]{1,16}|0|[1-9]\d{0,19}), userspace_addr=(0x[0-9a-f]{1,16}|0|[1-9]\d{0,19})[,}]"
)
_U64 = 1 << 64

_MOST_KEPT = 2048
_MUST_READ = ("KVM_SET_USER_MEMORY_REGION", "KVM_RUN")


class Ending(enum.Enum):
    """How a text says that its call ended."""

    ANSWERED = enum.auto()
    """It has a result."""
    UNFINISHED = enum.auto()
    """Another line came between; a later one has the end."""
    DETACHED = enum.auto()
    """The tracer let go of the thread before the call had ended."""
    UNKNOWN = enum.auto()
    """The thread ended in the call: its result is a question mark."""
    UNREADABLE = enum.auto()
    """The text says none of these: it was cut off."""


@dataclass(frozen=True, slots=True)
class Words:
    """What one text says.

    Attributes:
        request: the ioctl's name; None of a text in which none can be read, and of the end of a call.
        may_matter: whether what cannot be read of it may be a slot call or a KVM_RUN.
        ending: how it ended.
        result: what the call returned, where it was answered.
        errno: the error's name ("EEXIST"), where it was refused.
        fd: the file descriptor.
        vcpu: the id of the vCPU that is run or made, where the text shows it.
        region: a slot call's arguments; None where the text does not show them.
        has_contents: whether it shows some structure's contents, be they readable or not.
    """

    request: str | None
    may_matter: bool
    ending: Ending
    result: int | None = None
    errno: str | None = None
    fd: int = 0
    vcpu: int | None = None
    region: Memslot | None = None
    has_contents: bool = False


@lru_cache(maxsize=_MOST_KEPT)
def words_of(text: str) -> Words:
    """Work a text out.

    Args:
        text: from "ioctl(" on, or from "<... ioctl resumed>" on, without the time that -T puts behind it.
    """
    ending, result, errno = _outcome(text)
    match = _IOCTL.match(text)
    if match is None or "ioctl(" in (behind := text[match.end() :]) or RESUMED in behind:
        # Cut off, or two lines that ran into one another: what either of them did is not known.
        return Words(None, match is not None or ")" not in text or may_matter(text), ending, result, errno)
    request = name_of(match[3])
    # A clipped name may have been one that matters.
    is_clipped = request not in WANTED and text == match[0] and _clipped(request)
    vcpu = _VCPU_ID.search(text) if match[2] is None or request != "KVM_RUN" else _VCPU_FD.search(match[2])
    return Words(
        request,
        is_clipped,
        ending,
        result,
        errno,
        int(match[1], 0),
        None if vcpu is None else int(vcpu[1], 0),
        _memslot(text),
        "{" in text,
    )


def _outcome(text: str) -> tuple[Ending, int | None, str | None]:
    if text.endswith(_UNFINISHED):
        return Ending.UNFINISHED, None, None
    if text.endswith(_DETACHED):
        return Ending.DETACHED, None, None
    match = _RESULT.search(text)
    if match is None:
        return Ending.UNREADABLE, None, None
    if match[1] == "?":
        return Ending.UNKNOWN, None, None
    return Ending.ANSWERED, int(match[1]), match[2]


def may_matter(text: str) -> bool:
    """Tell whether a text names a slot call or a KVM_RUN."""
    return any(request in text for request in _MUST_READ)


def _clipped(name: str) -> bool:
    return name.startswith(("0x", "_IO")) or any(request.startswith(name) for request in _MUST_READ)


def _memslot(text: str) -> Memslot | None:
    """Make a memslot of the words that strace printed; None where they are not its usual ones."""
    match = _REGION.search(text)
    flags = None if match is None else _flags(match[2])
    if match is None or flags is None:
        return None
    gpa, size, hva = int(match[3], 0), int(match[4], 0), int(match[5], 0)
    if gpa + size > _U64 or hva + size > _U64:
        return None
    return Memslot(int(match[1]), flags, gpa, size, hva)


def _flags(text: str) -> int | None:
    bits = 0
    for word in text.split("|"):
        name = word.removeprefix("KVM_MEM_")
        if name in MemFlag.__members__:
            bits |= MemFlag[name]
        elif name == "GUEST_MEMFD":
            bits |= 4
        elif (number := _NUMBER.match(word)) is not None:
            bits |= int(number[0], 0)
        else:
            return None
    return bits
