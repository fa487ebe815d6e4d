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

CODE_GPA, CODE_SLOT = 0xF000_0000, 500
MMIO_BYTE = b"\xa5"
U64 = (1 << 64) - 1

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
    async def set_regs(self, regs: dict[str, int]) -> None: ...
    async def get_reg(self, name: str) -> int: ...
    async def run(self, data: bytes | None) -> RunExit: ...


class Replay:
    """One sequence under way against a subject."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._host: dict[str, int] = {}

    async def play(self, sequence: Sequence) -> list[Answer]:
        """Return vmmd's answer to every operation."""
        for name, size in sequence["host"].items():
            self._host[name] = await self._subject.map_host_memory(size)
        code = await self._subject.map_host_memory(4096)
        await self._subject.write_host_memory(code, _CODE)
        await self._subject.set_user_memory_region(CODE_SLOT, 0, CODE_GPA, 4096, code)
        return [await self._do(operation) for operation in sequence["ops"]]

    async def _do(self, operation: Operation) -> Answer:
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
        bitmap = bytes.fromhex(op["bitmap"])
        # The recorder handed the kernel a larger buffer, the rest of it zeroes.
        padded = bitmap + bytes(64)
        await self._subject.clear_dirty_log(op["slot"], op["first_page"], op["num_pages"], padded)
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
        exits = await self._enter("read", op["size"], op["gpa"], 0)
        if "errno" in (exits[-1] if exits else {}):
            return {"exits": exits}
        return {"exits": exits, "value": await self._subject.get_reg("x10")}

    async def _guest_write(self, op: Operation) -> Answer:
        return {"exits": await self._enter("write", op["size"], op["gpa"], op["value"])}

    async def _enter(self, kind: str, size: int, gpa: int, value: int) -> list[Answer]:
        await self._subject.set_regs({"pc": _ENTRY[kind, size], "a0": value, "a1": gpa})
        exits: list[Answer] = []
        data: bytes | None = None
        while True:
            try:
                exit_ = await self._subject.run(data)
            except Failure as failure:
                return [*exits, {"errno": str(failure)}]
            data = None
            if exit_.reason == "HLT":
                return exits
            if exit_.reason != "MMIO":
                return [*exits, {"reason": exit_.reason, "suberror": exit_.suberror}]
            answer: Answer = {
                "reason": "MMIO",
                "phys_addr": exit_.phys_addr,
                "len": exit_.len,
                "is_write": int(exit_.is_write),
            }
            if exit_.is_write:
                answer["data"] = exit_.data.hex()
            else:
                data = MMIO_BYTE * exit_.len
            exits.append(answer)


async def differences(subject: Subject, sequence: Sequence) -> list[str]:
    """Replay a sequence, and describe every operation to which vmmd answers otherwise than the kernel did."""
    answers = await Replay(subject).play(sequence)
    return [
        f"sequence {sequence['id']}, operation {index}: {operation}, but vmmd: {answer}"
        for index, (operation, answer) in enumerate(zip(sequence["ops"], answers, strict=True))
        if operation["want"] != answer
    ]
