"""T64's assembler: GNU as's RISC-V syntax in, one flat piece of code out.

What it makes is bit-equal to `as -march=rv64ima_zicsr_zifencei` and `ld --no-relax` of GNU binutils 2.40, with `origin`
for the text's address. It differs where GNU as would make code that cannot run, or would only warn:

- `.align` always aligns. GNU as leaves out an alignment to four bytes or fewer, and its linker gives up where a larger
  one begins at an address that is no multiple of four. So a `.align 2` after a string does here what it says.
- `.org`, and an alignment with a byte to fill with, hold in the finished code. GNU ld moves what lies behind an
  alignment of code when it shortens that, unless `.option norelax` stands above.
- A value that does not fit, a shift of more than 63 bits and a missing value are errors; GNU as warns and goes on.
- Of the control and status registers those of T64 have names; the others are numbers.
- `//` begins a comment, and immediates may be forward references and distances between labels.
- The zeroes with which GNU as fills up a section's end, and GNU ld its start where `origin` is less aligned, are left
  out.

It refuses other sections than text, macros and conditions, files (`.include`, `.incbin`), and code larger than
`MAX_CODE_BYTES`. Any text gives code or an `AssemblyError`, in time linear in the text and in memory bounded by both.

The modules, in the order of the work: `text` (tokens), `expressions` and `symbols` (values and names), `operands` (what
each format takes), `pseudo` (instructions made of others), `directives`, `program` (the first pass, statement after
statement), `layout` (where everything lies, and which branches are long), `relocations` (the bits that wait for
addresses) and `finish` (the second pass).
"""

from vmmd.isa.assembler.finish import Assembly, finish
from vmmd.isa.assembler.layout import MAX_CODE_BYTES
from vmmd.isa.assembler.program import Program
from vmmd.isa.assembler.relocations import MASK_64
from vmmd.isa.assembler.text import AssemblyError, TextError, statements

__all__ = ["MAX_CODE_BYTES", "Assembly", "AssemblyError", "assemble"]


def assemble(source: str, origin: int = 0) -> Assembly:
    """Assemble `source` into code that lies at the guest address `origin`.

    Returns:
        The code, and the text's symbols as unsigned 64-bit numbers.

    Raises:
        AssemblyError: the text is no program for this machine, or larger than `MAX_CODE_BYTES`.
        ValueError: `origin` is not a 64-bit address.
    """
    if not 0 <= origin <= MASK_64:
        raise ValueError(f"the origin {origin:#x} is not between 0 and {MASK_64:#x}")
    try:
        program = Program()
        for statement in statements(source):
            program.take(statement)
        return finish(program.output, program.symbols, origin)
    except TextError as error:
        raise error.located(source) from None
