"""The assembler and the disassembler: models and methods."""

from pydantic import Field

from vmmd.api.method import Method
from vmmd.api.types import Base64, Hex64, Params, Result, U64In

MAX_SOURCE_CHARACTERS = 256 << 10
"""The longest source, in characters: a few seconds' work for the assembler."""


MAX_CODE_BYTES = 256 << 10
"""The most code that one call disassembles, in bytes."""


class AssembleParams(Params):
    """What to assemble, and for where."""

    source: str = Field(
        max_length=MAX_SOURCE_CHARACTERS,
        description=f"T64 assembly, a statement a line; at most {MAX_SOURCE_CHARACTERS} characters (256 KiB of ASCII).",
    )
    origin: U64In = Field(default=0, description="The guest physical address of the first byte.")


class AssembleResult(Result):
    """The code and its labels."""

    code: Base64 = Field(description="The bytes, base64.")
    symbols: dict[str, Hex64] = Field(description="Label to address.")


class DisassembleParams(Params):
    """What to disassemble, and where it lies."""

    code: Base64 = Field(
        max_length=MAX_CODE_BYTES,
        description=f"The bytes, base64; at most {MAX_CODE_BYTES} (256 KiB), four of them an instruction.",
    )
    origin: U64In = Field(default=0, description="The guest physical address of the first byte.")


class Line(Result):
    """One instruction, or what is none."""

    address: Hex64 = Field(description="Where it lies.")
    word: Hex64 = Field(description="Its four bytes as a little-endian number; at the end, what bytes are left.")
    text: str = Field(description="What isa.assemble makes these bytes of, at this address.")


ROWS = (
    Method(
        "isa.assemble",
        AssembleParams,
        AssembleResult,
        "Assemble T64 source; an error names line and column.",
        errors={
            "EINVAL": "A statement is none, or does not fit; `data` has its line and column.",
            "E2BIG": "The result has no room in the reply.",
        },
    ),
    Method(
        "isa.disassemble",
        DisassembleParams,
        list[Line],
        "Write code as T64 source, a word a line; assembled again it is the same code.",
        errors={
            "EINVAL": "The code does not lie in the 64-bit addresses at `origin`.",
            "E2BIG": "The lines have no room in the reply; give less code at a time.",
        },
    ),
)
