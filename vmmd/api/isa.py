"""Models of the assembler."""

from pydantic import Field

from vmmd.api.types import Base64, Hex64, Params, Result, U64In

MAX_SOURCE_CHARACTERS = 256 << 10
"""The longest source, in characters: a few seconds' work for the assembler."""


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
