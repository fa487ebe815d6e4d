"""Lines as strace prints them, for tests that write their own recordings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import vmmd_client
from vmmd_client.audit import StraceReader, Update, audit
from vmmd_client.audit.audit import Findings

RECORDINGS = Path(__file__).parent.parent / "client" / "data"
SHIPPED = Path(vmmd_client.__file__).parent / "data" / "qemu-7.2-pc-boot.strace.gz"


def slot(
    seconds: float,
    slot_id: int,
    gpa: int,
    size: int,
    *,
    thread: int = 10,
    fd: int = 8,
    tail: str = ") = 0",
    flags: str = "0",
) -> str:
    """A slot call, as one line unless the tail says otherwise."""
    return (
        f"{thread} {1_700_000_000 + seconds:.6f} ioctl({fd}, KVM_SET_USER_MEMORY_REGION, {{slot={slot_id}, "
        f"flags={flags}, guest_phys_addr={gpa:#x}, memory_size={size}, userspace_addr=0x7f0000000000}}{tail}"
    )


def line(seconds: float, text: str, *, thread: int = 11) -> str:
    return f"{thread} {1_700_000_000 + seconds:.6f} {text}"


def run(seconds: float, *, thread: int = 11, fd: int = 9, tail: str = ", 0) = 0") -> str:
    return line(seconds, f"ioctl({fd}, KVM_RUN{tail}", thread=thread)


def resumed(seconds: float, result: str = ", 0) = 0", *, thread: int = 11) -> str:
    return line(seconds, f"<... ioctl resumed>{result}", thread=thread)


def findings(lines: Iterable[str]) -> tuple[Findings, StraceReader]:
    reader = StraceReader()
    return audit(reader.read(lines)), reader


def updates(lines: Iterable[str]) -> Sequence[Update]:
    found, _ = findings(lines)
    return found.vms[0].updates if found.vms else []


UNFINISHED = " <unfinished ...>"
