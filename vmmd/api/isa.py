"""Models of the assembler."""

from pydantic import Field

from vmmd.api.types import Base64, Hex64, Params, Result, U64In


class AssembleParams(Params):
    """What to assemble, and for where."""

    source: str = Field(description="T64 assembly, a statement a line.")
    origin: U64In = Field(default=0, description="The guest physical address of the first byte.")


class AssembleResult(Result):
    """The code and its labels."""

    code: Base64 = Field(description="The bytes, base64.")
    symbols: dict[str, Hex64] = Field(description="Label to address.")
