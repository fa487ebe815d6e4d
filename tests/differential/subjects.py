"""What runs programs: vmmd's two engines without a VM around them, and Unicorn.

A subject is one machine at the start of one program. It runs as many instructions as it is told, and shows all of its
registers and memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from unicorn import UC_ARCH_RISCV, UC_HOOK_BLOCK, UC_MODE_RISCV64, Uc, UcError
from unicorn.riscv_const import UC_RISCV_REG_PC, UC_RISCV_REG_X0

from tests.differential.program import CODE_AT, CODE_BYTES, DATA_AT, DATA_BYTES, REGIONS, Program
from tests.isa.machine import bare_machine
from tests.isa.turns import run
from vmmd.isa.decode import decode
from vmmd.isa.engine import Engine
from vmmd.isa.stop import Stop
from vmmd.memory.access import read_guest, write_guest


@dataclass(frozen=True, slots=True)
class State:
    """All that can be seen of a machine. `left` says why it could not run on, where that is so."""

    x: tuple[int, ...]
    pc: int
    code: bytes
    data: bytes
    left: str | None


class Subject(Protocol):
    """A machine that runs one program."""

    def run(self, instructions: int) -> None:
        """Run so many instructions, or until it cannot run on."""

    def state(self) -> State:
        """Return what is to be seen now."""


MakeSubject = Callable[[Program], Subject]


def code_bytes(program: Program) -> bytes:
    """Return a program's words as they lie in memory."""
    return b"".join(word.to_bytes(4, "little") for word in program.words)


class OnEngine:
    """A vCPU's context on one of vmmd's engines."""

    def __init__(self, engine: Engine, program: Program) -> None:
        self._engine = engine
        machine = bare_machine(engine, code_bytes(program), program.start, REGIONS)
        write_guest(machine.view, DATA_AT, program.data)
        record = machine.context.record
        for number, value in enumerate(program.registers):
            record.x[number] = value
        self._machine = machine
        self._left: str | None = None

    def run(self, instructions: int) -> None:
        """See `Subject`."""
        if self._left is None:
            self._machine.context.record.budget = instructions
            ran = run(self._engine, self._machine.context, self._machine.view)
            if ran is not Stop.BUDGET:
                self._left = f"the guest was left: {ran}"

    def state(self) -> State:
        """See `Subject`."""
        record, view = self._machine.context.record, self._machine.view
        code, data = read_guest(view, CODE_AT, CODE_BYTES), read_guest(view, DATA_AT, DATA_BYTES)
        return State(tuple(record.x), record.pc, code, data, self._left)


_X = [UC_RISCV_REG_X0 + number for number in range(32)]
_NOWHERE = 1 << 40


class OnUnicorn:
    """A processor of Unicorn's.

    `counts` takes how many instructions of each row ran: Unicorn tells of every block that it enters, and a run that
    ends inside of a block shows by pc how far it came.
    """

    def __init__(self, program: Program, counts: Counter[str] | None = None) -> None:
        self._uc = uc = Uc(UC_ARCH_RISCV, UC_MODE_RISCV64)
        uc.mem_map(CODE_AT, CODE_BYTES)
        uc.mem_map(DATA_AT, DATA_BYTES)
        uc.mem_write(program.start, code_bytes(program))
        uc.mem_write(DATA_AT, program.data)
        for register, value in zip(_X[1:], program.registers[1:], strict=True):
            uc.reg_write(register, value)
        uc.reg_write(UC_RISCV_REG_PC, program.start)
        self._left: str | None = None
        self._counts = counts
        self._blocks: list[tuple[int, bytes]] = []
        if counts is not None:
            uc.hook_add(UC_HOOK_BLOCK, self._note_block)

    def _note_block(self, uc: Uc, address: int, size: int, _: object) -> None:
        self._blocks.append((address, bytes(uc.mem_read(address, size))))

    def run(self, instructions: int) -> None:
        """See `Subject`."""
        if self._left is not None:
            return
        try:
            self._uc.emu_start(self._uc.reg_read(UC_RISCV_REG_PC), _NOWHERE, count=instructions)
        except UcError as error:
            self._left = str(error)
        if self._counts is not None:
            self._count(instructions)

    def _count(self, instructions: int) -> None:
        assert self._counts is not None
        done = 0
        pc = self._uc.reg_read(UC_RISCV_REG_PC)
        for index, (address, code) in enumerate(self._blocks):
            ends_here = index == len(self._blocks) - 1 and address <= pc < address + len(code)
            for at in range(0, pc - address if ends_here else len(code), 4):
                row = decode(int.from_bytes(code[at : at + 4], "little"))
                assert row is not None, "Unicorn ran a word that the table does not have"
                self._counts[row.name] += 1
                done += 1
        self._blocks.clear()
        assert done == instructions or self._left, f"{done} instructions counted where {instructions} ran"

    def state(self) -> State:
        """See `Subject`."""
        uc = self._uc
        code, data = uc.mem_read(CODE_AT, CODE_BYTES), uc.mem_read(DATA_AT, DATA_BYTES)
        return State(tuple(uc.reg_read_batch(_X)), uc.reg_read(UC_RISCV_REG_PC), bytes(code), bytes(data), self._left)
