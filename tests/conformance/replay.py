"""Replays a sequence against vmmd and gives vmmd's answers in the recording's form, whatever stands between.

A `Subject` is a VM that answers or fails with a `Failure`. How a guest access is made of registers, KVM_RUN and exits
is the same for every subject, and is settled here.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol

from tests.conformance.recording import Answer, Operation, Sequence
from vmmd.isa.assembler import assemble

CODE_GPA, CODE_SLOT, CODE_SIZE = 0xF000_0000, 500, 1 << 16
MMIO_BYTE = b"\xa5"
U64 = (1 << 64) - 1

HOLE_ADDRESS = 1 << 46
"""Where the hole of a sequence begins in vmmd: userspace addresses far behind every mapping, where none will be."""

_MOST_CLEARED_PAGES = 1 << 20

_ACCESSES = {
    **{("read", size): f"{load} a0, 0(a1)" for size, load in ((1, "lbu"), (2, "lhu"), (4, "lwu"), (8, "ld"))},
    **{("write", size): f"{store} a0, 0(a1)" for size, store in ((1, "sb"), (2, "sh"), (4, "sw"), (8, "sd"))},
}
_CODE = assemble("\n".join(f"{access}\nwfi" for access in _ACCESSES.values())).code
_ENTRY = {access: CODE_GPA + 8 * index for index, access in enumerate(_ACCESSES)}


class Failure(Exception):  # noqa: N818  (an expected answer)
    """An ioctl failed with this errno's name."""


@dataclass(frozen=True)
class RunExit:
    """One return of KVM_RUN, without KVM_EXIT_ in its reason."""

    reason: str
    phys_addr: int = 0
    len: int = 0
    is_write: bool = False
    data: bytes = b""
    suberror: int = 0
    a0: int = 0
    """The register behind it, where the guest made its access (HLT)."""


class Subject(Protocol):
    """A fresh VM with one vCPU."""

    async def map_host_memory(self, size: int) -> int: ...
    async def unmap_host_memory(self, userspace_addr: int, size: int) -> None: ...
    async def read_host_memory(self, userspace_addr: int, length: int) -> bytes: ...
    async def write_host_memory(self, userspace_addr: int, data: bytes) -> None: ...
    async def set_user_memory_region(self, slot: int, flags: int, gpa: int, size: int, hva: int) -> None: ...
    async def get_dirty_log(self, slot: int) -> bytes: ...
    async def clear_dirty_log(self, slot: int, first_page: int, num_pages: int, bitmap: bytes) -> None: ...
    async def enable_cap(self, cap: str, arg: int) -> None: ...
    async def table(self) -> object:
        """Return the slot table with its generation, as a value to compare."""

    async def start(self, regs: dict[str, int]) -> RunExit:
        """Set registers, then KVM_RUN."""

    async def run(self, data: bytes | None) -> RunExit:
        """KVM_RUN, with the answer to the read that it ended with before."""


class Replay:
    """One sequence under way against a subject."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._host: dict[str, int] = {}

    async def begin(self, sequence: Sequence) -> None:
        """Map the sequence's host memory, and put the guest in its place."""
        await self.map_host(sequence)
        await self.place_guest()

    async def map_host(self, sequence: Sequence) -> None:
        """Map the sequence's host memory."""
        self._host = dict.fromkeys(sequence.get("holes", {}), HOLE_ADDRESS)
        for name, size in sequence["host"].items():
            self._host[name] = await self._subject.map_host_memory(size)

    async def place_guest(self) -> None:
        """Map the guest's code, and make a slot of it."""
        code = await self._subject.map_host_memory(CODE_SIZE)
        await self._subject.write_host_memory(code, _CODE)
        await self._subject.set_user_memory_region(CODE_SLOT, 0, CODE_GPA, CODE_SIZE, code)

    async def table(self) -> object:
        """Return the slot table with its generation, as a value to compare."""
        return await self._subject.table()

    async def do(self, operation: Operation) -> Answer:
        """Return vmmd's answer to one operation."""
        name = operation["op"]
        play: Callable[[Operation], Coroutine[Any, Any, Answer]] = getattr(self, f"_{name}")
        if name in {"host_read", "host_write", "host_unmap", "guest_read", "guest_write"}:
            return await play(operation)
        try:
            return {"errno": "0"} | await play(operation)
        except Failure as failure:
            return {"errno": str(failure)}

    def _hva(self, where: int | dict[str, Any]) -> int:
        return where if isinstance(where, int) else self._host[where["at"]] + where["offset"] & U64

    async def _set_user_memory_region(self, op: Operation) -> Answer:
        hva = self._hva(op["userspace_addr"])
        await self._subject.set_user_memory_region(
            op["slot"], op["flags"], op["guest_phys_addr"], op["memory_size"], hva
        )
        return {}

    async def _enable_cap(self, op: Operation) -> Answer:
        await self._subject.enable_cap(op["cap"], op["arg"])
        return {}

    async def _get_dirty_log(self, op: Operation) -> Answer:
        return {"bitmap": (await self._subject.get_dirty_log(op["slot"])).hex()}

    async def _clear_dirty_log(self, op: Operation) -> Answer:
        await self._subject.clear_dirty_log(op["slot"], op["first_page"], op["num_pages"], padded_bitmap(op))
        return {}

    async def _host_unmap(self, op: Operation) -> Answer:
        await self._subject.unmap_host_memory(self._hva(op["userspace_addr"]), op["length"])
        return {}

    async def _host_write(self, op: Operation) -> Answer:
        await self._subject.write_host_memory(self._hva(op["userspace_addr"]), bytes.fromhex(op["data"]))
        return {}

    async def _host_read(self, op: Operation) -> Answer:
        data = await self._subject.read_host_memory(self._hva(op["userspace_addr"]), op["length"])
        return {"data": data.hex()}

    async def _guest_read(self, op: Operation) -> Answer:
        exits, value = await self._access("read", op["size"], op["gpa"], 0)
        return {"exits": exits} if value is None else {"exits": exits, "value": value}

    async def _guest_write(self, op: Operation) -> Answer:
        exits, _ = await self._access("write", op["size"], op["gpa"], op["value"])
        return {"exits": exits}

    async def _access(self, kind: str, size: int, gpa: int, value: int) -> tuple[list[Answer], int | None]:
        """Let the guest make one access; return every exit on the way, and a0 behind it, where it was made."""
        exits: list[Answer] = []
        try:
            exit_ = await self._subject.start({"pc": _ENTRY[kind, size], "a0": value, "a1": gpa})
            while exit_.reason == "MMIO":
                exits.append(_mmio_answer(exit_))
                exit_ = await self._subject.run(None if exit_.is_write else MMIO_BYTE * exit_.len)
        except Failure as failure:
            return [*exits, {"errno": str(failure)}], None
        if exit_.reason == "HLT":
            return exits, exit_.a0
        return [*exits, {"reason": exit_.reason, "suberror": exit_.suberror}], None


def _mmio_answer(exit_: RunExit) -> Answer:
    answer: Answer = {
        "reason": "MMIO",
        "phys_addr": exit_.phys_addr,
        "len": exit_.len,
        "is_write": int(exit_.is_write),
    }
    return answer | ({"data": exit_.data.hex()} if exit_.is_write else {})


def padded_bitmap(clear: Operation) -> bytes:
    """Return the bitmap of a `clear_dirty_log`, and zeroes behind it for whatever a legal one reads of it."""
    bits = bytes.fromhex(clear["bitmap"])
    return bits.ljust(min(clear["num_pages"], _MOST_CLEARED_PAGES) // 8, b"\0") + bytes(64)


async def differences(subject: Subject, sequence: Sequence) -> list[str]:
    """Replay a sequence, and describe every operation to which vmmd answers otherwise than the kernel did."""
    replay = Replay(subject)
    await replay.begin(sequence)
    found: list[str] = []
    for index, operation in enumerate(sequence["ops"]):
        answer = await replay.do(operation)
        if answer != operation["want"]:
            found.append(f"sequence {sequence['id']}, operation {index}: {operation}, but vmmd: {answer}")
    return found
