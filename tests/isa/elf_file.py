"""A small writer of ELF64 files, for tests that need one with anything wrong with it."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

EHDR = struct.Struct("<4sBBBBB7xHHIQQQIHHHHHH")
PHDR = struct.Struct("<IIQQQQQQ")
SHDR = struct.Struct("<IIQQQQIIQQ")
SYM = struct.Struct("<IBBHQQ")

PT_LOAD, PT_INTERP, PT_NOTE = 1, 3, 4
STB_LOCAL, STB_GLOBAL, STB_WEAK = 0, 1, 2
STT_NOTYPE, STT_OBJECT, STT_FUNC, STT_SECTION, STT_FILE, STT_TLS = 0, 1, 2, 3, 4, 6
SHN_UNDEF, SHN_ABS, SHN_COMMON = 0, 0xFFF1, 0xFFF2
SHT_SYMTAB, SHT_STRTAB = 2, 3


@dataclass
class Load:
    """A program header; what is None follows from the data."""

    paddr: int
    data: bytes = b""
    memsz: int | None = None
    vaddr: int | None = None
    filesz: int | None = None
    offset: int | None = None
    type: int = PT_LOAD


@dataclass
class Sym:
    """An entry of the symbol table."""

    name: bytes
    value: int = 0
    bind: int = STB_GLOBAL
    type: int = STT_FUNC
    shndx: int = 1


@dataclass
class File:
    """A file; `header` and `symtab` replace fields of the ELF header and of the symbol table's section header."""

    loads: list[Load]
    entry: int = 0x8000_0000
    symbols: list[Sym] = field(default_factory=list)
    header: dict[str, int] = field(default_factory=dict)
    symtab: dict[str, int] = field(default_factory=dict)
    sections: bool = True

    def bytes(self) -> bytes:
        out = bytearray(EHDR.size + PHDR.size * len(self.loads))
        for number, load in enumerate(self.loads):
            filesz = len(load.data) if load.filesz is None else load.filesz
            memsz = filesz if load.memsz is None else load.memsz
            vaddr = load.paddr if load.vaddr is None else load.vaddr
            offset = len(out) if load.offset is None else load.offset
            at = EHDR.size + PHDR.size * number
            out[at : at + PHDR.size] = PHDR.pack(load.type, 7, offset, vaddr, load.paddr, filesz, memsz, 4)
            out += load.data
        fields = {"class": 2, "data": 1, "type": 2, "machine": 243, "flags": 0, "phoff": EHDR.size}
        fields |= {"phentsize": PHDR.size, "phnum": len(self.loads), "shoff": 0, "shnum": 0, "shentsize": SHDR.size}
        if self.sections:
            fields |= self._add_sections(out)
        f = fields | self.header
        out[: EHDR.size] = EHDR.pack(
            *(b"\x7fELF", f["class"], f["data"], 1, 0, 0, f["type"], f["machine"], 1, self.entry, f["phoff"]),
            *(f["shoff"], f["flags"], EHDR.size, f["phentsize"], f["phnum"], f["shentsize"], f["shnum"], 2),
        )
        return bytes(out)

    def _add_sections(self, out: bytearray) -> dict[str, int]:
        names = bytearray(b"\0")
        table = bytearray(SYM.size)
        for symbol in self.symbols:
            table += SYM.pack(len(names), symbol.bind << 4 | symbol.type, 0, symbol.shndx, symbol.value, 0)
            names += symbol.name + b"\0"
        s = {"type": SHT_SYMTAB, "offset": len(out), "size": len(table), "link": 2, "entsize": SYM.size} | self.symtab
        out += table
        names_at = len(out)
        out += names
        sections_at = len(out)
        out += bytes(SHDR.size)
        out += SHDR.pack(0, s["type"], 0, 0, s["offset"], s["size"], s["link"], 1, 8, s["entsize"])
        out += SHDR.pack(0, SHT_STRTAB, 0, 0, names_at, len(names), 0, 0, 1, 0)
        return {"shoff": sections_at, "shnum": 3}
