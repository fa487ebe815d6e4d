"""Short ways to assemble a text in tests."""

import pytest

from vmmd.isa.assembler import AssemblyError, assemble

NOP = bytes.fromhex("13000000")


def code(source: str, origin: int = 0) -> bytes:
    """Return the code of a text."""
    return assemble(source, origin).code


def numbers(expressions: str) -> list[int]:
    """Return the values of expressions with commas between them."""
    data = code(f".dword {expressions}")
    return [int.from_bytes(data[at : at + 8], "little", signed=True) for at in range(0, len(data), 8)]


def error(source: str, origin: int = 0) -> AssemblyError:
    """Return the error that a text gives."""
    with pytest.raises(AssemblyError) as caught:
        assemble(source, origin)
    return caught.value
