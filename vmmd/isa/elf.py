"""ELF64 executables for RISC-V, as linkers make them: what of a file goes into guest memory, and its symbols.

It takes what runs on T64 as it stands: little-endian, linked to fixed addresses, without compressed instructions and
without a floating-point ABI. It refuses everything else with an `ElfError` that says which part of the file is wrong:
objects that are still to be linked, shared libraries, whatever needs a loader of its own, and files that are damaged.
What a file may ask for is bounded by the constants below, so any bytes are read in time and memory linear in their
number.

pyelftools knows the structures. They are read one at a time, each after a check that the file has it: pyelftools'
objects for sections and symbols look names up, and follow a name for as long as the file goes on.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from types import MappingProxyType
from typing import Any

from elftools.common.exceptions import ELFError
from elftools.common.utils import struct_parse
from elftools.construct import Construct
from elftools.elf.elffile import ELFFile

from vmmd.memory.limits import U64

MAX_PROGRAM_HEADERS = 256
"""Program headers of a file; linkers make fewer than ten."""

MAX_SECTIONS = 4096
"""Section headers of a file; linkers join sections, so that some dozens are left."""

MAX_SYMBOLS = 1 << 16
"""Entries of the symbol table: about two seconds' work."""

MAX_NAME_BYTES = 4096
"""The longest name of a symbol; C++ makes some of a few hundred."""

MAX_MEMORY_BYTES = 1 << 30
"""Guest memory of all segments, zeroes included: they are written in one step, while nothing else is answered."""

_FLAGS = {
    0x0001: "compressed instructions (RVC), which T64 does not have; compile with -march=rv64ima_zicsr_zifencei",
    0x0006: "a floating-point ABI, and T64 has no floating point; compile with -mabi=lp64",
    0x0010: "total store order (Ztso), which T64 does not promise",
}
_HARMLESS_FLAGS = 0x0008  # RVE: the code uses 16 of the registers.

_TYPES = {
    "ET_REL": "an object file; link it first",
    "ET_DYN": "a shared library or a position-independent executable; link with -static -no-pie",
    "ET_CORE": "a core dump",
}

_SYMBOL_TYPES = {"STT_NOTYPE", "STT_OBJECT", "STT_FUNC"}
_STRENGTHS = {"STB_LOCAL": 0, "STB_WEAK": 1, "STB_GLOBAL": 2}


class ElfError(ValueError):
    """The bytes are no executable for T64: `message` says what is wrong with which `part` of the file."""

    def __init__(self, part: str, message: str) -> None:
        super().__init__(part, message)
        self.part = part
        self.message = message

    def __str__(self) -> str:
        return f"{self.part}: {self.message}"


@dataclass(frozen=True, slots=True)
class Segment:
    """What lies at one place of guest memory.

    Attributes:
        paddr: the guest physical address of the first byte.
        data: the bytes that the file has for it.
        memory_size: how many bytes it has in memory; those behind the data are zeroes.
    """

    paddr: int
    data: bytes = field(repr=False)
    memory_size: int


@dataclass(frozen=True, slots=True)
class Image:
    """An executable.

    Attributes:
        entry: the guest physical address of the first instruction.
        segments: in the order of their addresses; no two overlap.
        symbols: the addresses of functions, objects and labels by their names; of several, a global one's.
    """

    entry: int
    segments: tuple[Segment, ...]
    symbols: Mapping[str, int]


def parse(data: bytes) -> Image:
    """Read an executable.

    Raises:
        ElfError: the bytes are no executable for T64.
    """
    try:
        elf = ELFFile(io.BytesIO(data))
    except ELFError as error:
        raise ElfError("ELF header", f"no ELF file ({error})") from None
    _check_header(elf)
    headers = [header for _, header in _table(elf, data, "program", MAX_PROGRAM_HEADERS)]
    loads = [(number, header) for number, header in enumerate(headers) if header["p_type"] == "PT_LOAD"]
    if any(header["p_type"] == "PT_INTERP" for header in headers):
        raise ElfError("program headers", "it needs a dynamic linker (PT_INTERP); link with -static")
    segments = _segments(data, loads)
    return Image(_entry(elf, loads), segments, MappingProxyType(_symbols(elf, data)))


def _check_header(elf: ELFFile) -> None:
    if elf.elfclass != 64:
        raise ElfError("ELF header", f"an ELF{elf.elfclass} file; T64 runs ELF64, compile with -march=rv64… -mabi=lp64")
    if not elf.little_endian:
        raise ElfError("ELF header", "a big-endian file; T64 is little-endian")
    if elf["e_machine"] != "EM_RISCV":
        raise ElfError("ELF header", f"made for the machine {elf['e_machine']}, not for RISC-V (EM_RISCV)")
    if elf["e_type"] != "ET_EXEC":
        what = _TYPES.get(elf["e_type"], "no executable (ET_EXEC)")
        raise ElfError("ELF header", f"its type is {elf['e_type']}: {what}")
    flags = elf["e_flags"]
    for flag, what in _FLAGS.items():
        if flags & flag:
            raise ElfError("ELF header", f"e_flags {flags:#x} say that it has {what}")
    if flags & ~_HARMLESS_FLAGS:
        raise ElfError("ELF header", f"e_flags {flags:#x} have bits that are not known here")


def _table(elf: ELFFile, data: bytes, kind: str, most: int) -> Iterator[tuple[int, Any]]:
    """Give the offset and the fields of each header of a kind, "program" or "section"."""
    letter = kind[0]
    offset, size, count = elf[f"e_{letter}hoff"], elf[f"e_{letter}hentsize"], elf[f"e_{letter}hnum"]
    if offset == 0:
        return
    struct: Construct = elf.structs.Elf_Phdr if kind == "program" else elf.structs.Elf_Shdr
    part = f"{kind} headers"
    if size != struct.sizeof():
        raise ElfError(part, f"e_{letter}hentsize is {size}; a header has {struct.sizeof()} bytes")
    if count > most:
        raise ElfError(part, f"there are {count}, and {most} are read at most")
    _check_inside(data, part, offset, count * size)
    for at in range(offset, offset + count * size, size):
        yield at, _read(elf, part, struct, at)


def _read(elf: ELFFile, part: str, struct: Construct, offset: int) -> Any:
    try:
        return struct_parse(struct, elf.stream, stream_pos=offset)
    except ELFError as error:
        raise ElfError(part, f"damaged at offset {offset:#x} ({error})") from None


def _check_inside(data: bytes, part: str, offset: int, size: int) -> None:
    if offset + size > len(data):
        raise ElfError(
            part, f"{size} bytes from offset {offset:#x} on reach beyond the file's {len(data)}; is it cut off?"
        )


def _segments(data: bytes, loads: Sequence[tuple[int, Any]]) -> tuple[Segment, ...]:
    found: list[Segment] = []
    for number, header in loads:
        part = f"program header {number}"
        paddr, file_size, memory_size = header["p_paddr"], header["p_filesz"], header["p_memsz"]
        if memory_size < file_size:
            raise ElfError(part, f"p_memsz {memory_size:#x} is less than p_filesz {file_size:#x}")
        _check_inside(data, part, header["p_offset"], file_size)
        for name in ("p_paddr", "p_vaddr"):
            if header[name] + memory_size > U64 + 1:
                raise ElfError(part, f"{memory_size:#x} bytes at {name} {header[name]:#x} reach beyond 2^64")
        if memory_size:
            found.append(Segment(paddr, data[header["p_offset"] : header["p_offset"] + file_size], memory_size))
    if not found:
        raise ElfError("program headers", "there is nothing to load: no PT_LOAD segment with memory")
    total = sum(segment.memory_size for segment in found)
    if total > MAX_MEMORY_BYTES:
        raise ElfError(
            "program headers", f"{total:#x} bytes of memory are more than the largest, {MAX_MEMORY_BYTES:#x}"
        )
    found.sort(key=lambda segment: segment.paddr)
    for before, after in pairwise(found):
        if before.paddr + before.memory_size > after.paddr:
            raise ElfError(
                "program headers",
                f"segments overlap: {before.memory_size:#x} bytes at {before.paddr:#x} reach over {after.paddr:#x}",
            )
    return tuple(found)


def _entry(elf: ELFFile, loads: Sequence[tuple[int, Any]]) -> int:
    """Return where the first instruction lies. The entry is a virtual address, and T64 has none but physical ones."""
    entry = elf["e_entry"]
    for _, header in loads:
        offset = entry - header["p_vaddr"]
        if 0 <= offset < header["p_memsz"]:
            address: int = header["p_paddr"] + offset
            if address % 4:
                raise ElfError(
                    "ELF header", f"the entry {address:#x} is no multiple of 4, and instructions have 4 bytes"
                )
            return address
    raise ElfError("ELF header", f"the entry {entry:#x} lies in no segment; does the linker script name one (ENTRY)?")


def _symbols(elf: ELFFile, data: bytes) -> dict[str, int]:
    sections = [header for _, header in _table(elf, data, "section", MAX_SECTIONS)]
    table = next((header for header in sections if header["sh_type"] == "SHT_SYMTAB"), None)
    if table is None:
        return {}
    names = _names(data, sections, table["sh_link"])
    size = elf.structs.Elf_Sym.sizeof()
    count, rest = divmod(table["sh_size"], size)
    if rest or table["sh_entsize"] != size:
        sizes = f"{table['sh_size']} bytes in entries of {table['sh_entsize']}"
        raise ElfError("symbol table", f"{sizes}; an entry has {size}")
    if count > MAX_SYMBOLS:
        raise ElfError("symbol table", f"it has {count} symbols, and {MAX_SYMBOLS} are read at most; strip the file")
    _check_inside(data, "symbol table", table["sh_offset"], count * size)
    found: dict[str, tuple[int, int]] = {}
    for number in range(count):
        symbol = _read(elf, f"symbol {number}", elf.structs.Elf_Sym, table["sh_offset"] + number * size)
        strength = _STRENGTHS.get(symbol["st_info"]["bind"])
        if strength is None or symbol["st_info"]["type"] not in _SYMBOL_TYPES:
            continue
        if symbol["st_shndx"] in {"SHN_UNDEF", "SHN_COMMON"}:
            continue
        name = _name(names, symbol["st_name"], number)
        if name and (name not in found or found[name][0] < strength):
            found[name] = strength, symbol["st_value"]
    return {name: address for name, (_, address) in found.items()}


def _names(data: bytes, sections: Sequence[Any], link: int) -> bytes:
    """Return the string table that a symbol table links to."""
    if link >= len(sections) or sections[link]["sh_type"] != "SHT_STRTAB":
        raise ElfError("symbol table", f"its sh_link {link} is no string table among {len(sections)} sections")
    offset, size = sections[link]["sh_offset"], sections[link]["sh_size"]
    _check_inside(data, "string table", offset, size)
    return data[offset : offset + size]


def _name(names: bytes, start: int, number: int) -> str:
    """Return a symbol's name; nothing for those that assemblers make for themselves: `$x`, `.L1`."""
    end = names.find(b"\0", start, start + MAX_NAME_BYTES + 1)
    if end < 0:
        raise ElfError(
            f"symbol {number}", f"its name at {start:#x} of the string table has no end within {MAX_NAME_BYTES} bytes"
        )
    name = names[start:end]
    return "" if name.startswith((b"$", b".L")) else name.decode("utf-8", "backslashreplace")
