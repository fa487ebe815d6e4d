"""The disassembler's text against that of GNU objdump, over random words of every instruction.

Needs Debian's binutils-riscv64-unknown-elf.
"""

import random
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.isa.words import ARCHITECTURE, some_word
from vmmd.isa.disassemble import disassemble
from vmmd.isa.encoding import Format
from vmmd.isa.instructions import INSTRUCTIONS

TOOLS = "riscv64-unknown-elf-"
ORIGIN = 0x8000_0000

pytestmark = pytest.mark.skipif(
    shutil.which(f"{TOOLS}objdump") is None,
    reason="GNU objdump for RISC-V is not installed (apt-get install binutils-riscv64-unknown-elf)",
)

WITHOUT_I = {
    **{f"{name}i": name for name in ("add", "and", "or", "xor", "sll", "srl", "sra")},
    **{f"{name}iw": f"{name}w" for name in ("add", "sll", "srl", "sra")},
    **{f"csr{name}i": f"csr{name}" for name in ("w", "s", "c", "rw", "rs", "rc")},
}
"""Where binutils 2.40 writes an instruction with an immediate by the name of the one without."""


def by_gnu(words: list[int], folder: Path) -> list[str]:
    (folder / "words.s").write_text("".join(f".insn {word:#010x}\n" for word in words))
    subprocess.run([f"{TOOLS}as", ARCHITECTURE, "-o", "words.o", "words.s"], cwd=folder, check=True)
    done = subprocess.run(
        [f"{TOOLS}objdump", "-d", f"--adjust-vma={ORIGIN:#x}", "words.o"],
        cwd=folder,
        check=True,
        capture_output=True,
        text=True,
    )
    texts = re.findall(r"(?m)^ *[0-9a-f]+:\t[0-9a-f]{8} +\t(.*)$", done.stdout)
    # A target's address is followed by a symbol's name, and what objdump guesses by a comment.
    return [re.sub(r"\b([0-9a-f]+) <.*>", r"0x\1", text.split(" # ")[0]).replace("\t", " ") for text in texts]


def as_gnu_writes(text: str) -> str:
    name, blank, operands = text.partition(" ")
    operands = re.sub(r"\.[+-]\d+ # ", "", operands)
    return f"{WITHOUT_I.get(name, name)}{blank}{operands}"


@pytest.mark.parametrize("seed", range(3))
def test_text_is_that_of_objdump(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    # objdump does not know T64's ports.
    rows = [row for row in INSTRUCTIONS if row.format not in {Format.PORT_IN, Format.PORT_OUT}]
    words = [some_word(row, chance) for row in rows for _ in range(100)]
    ours = disassemble(b"".join(word.to_bytes(4, "little") for word in words), ORIGIN)
    theirs = by_gnu(words, tmp_path)
    assert len(theirs) == len(words)
    compared = {
        as_gnu_writes(line.text): text
        for line, text in zip(ours, theirs, strict=True)
        # objdump knows more names of CSRs, and passes over bits that `.word` says.
        if not (line.text.startswith(".word ") or (line.text.startswith("csr") and "0x" in line.text))
    }
    assert len(compared) > len(rows) * 20
    assert {ours: theirs for ours, theirs in compared.items() if ours != theirs} == {}
