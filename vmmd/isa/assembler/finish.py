"""The second pass: where everything lies, what every name is worth, and the code with all values in it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from vmmd.isa.assembler.expressions import Value, wrap
from vmmd.isa.assembler.layout import LONG_BRANCH_BYTES, Branch, Layout, Output, tail_data
from vmmd.isa.assembler.relocations import MASK_64, Distance, Patch, Rule
from vmmd.isa.assembler.symbols import Resolver, Symbols, is_local
from vmmd.isa.assembler.text import TextError
from vmmd.isa.encoding import IMMEDIATES, Format
from vmmd.isa.instructions import BY_NAME


@dataclass(frozen=True, slots=True)
class Assembly:
    """The code, and the absolute address or the value of every name in the text (numeric labels have none)."""

    code: bytes
    symbols: dict[str, int]


def finish(output: Output, symbols: Symbols, origin: int) -> Assembly:
    """Lay the output out at `origin` and put all values in.

    Raises:
        TextError: a name without a definition, a value that does not fit, or an output that is too large.
    """
    layout = Layout(output.fragments, origin)
    resolver = Resolver(lambda place: Value(wrap(origin + layout.starts[place.fragment] + place.offset), 0))
    code = _code_without_patches(layout, resolver, origin)
    if origin + len(code) > MASK_64 + 1:
        raise TextError(f"{len(code)} bytes of code do not fit between {origin:#x} and the last address", 0)
    _put_patches(output.patches, layout, resolver, origin, code)
    values = {
        symbol.name: resolver.value_of(symbol).number & MASK_64
        for symbol in symbols
        if symbol.meaning is not None and not is_local(symbol.name)
    }
    return Assembly(bytes(code), values)


def _code_without_patches(layout: Layout, resolver: Resolver, origin: int) -> bytearray:
    code = bytearray()
    for fragment, tail_bytes in layout.pieces():
        code += fragment.data
        if isinstance(fragment.tail, Branch):
            code += _branch_code(fragment.tail, origin + len(code), resolver)
        else:
            code += tail_data(fragment.tail, tail_bytes)
    return code


def _branch_code(branch: Branch, pc: int, resolver: Resolver) -> bytes:
    value = resolver.value(branch.patch.expression)
    if not branch.is_long:
        return (branch.word | branch.patch.bits(value, pc, {})).to_bytes(4, "little")
    # The lowest bit of funct3 turns a condition into its opposite, which goes on behind the jump.
    opposite = (branch.word ^ 1 << 12) | IMMEDIATES[Format.BRANCH].place(LONG_BRANCH_BYTES)
    jump = replace(branch.patch, immediate=IMMEDIATES[Format.JAL]).bits(value, pc + 4, {})
    return opposite.to_bytes(4, "little") + (BY_NAME["jal"].match | jump).to_bytes(4, "little")


def _put_patches(patches: list[Patch], layout: Layout, resolver: Resolver, origin: int, code: bytearray) -> None:
    offsets = [layout.starts[patch.place.fragment] + patch.place.offset for patch in patches]
    values = [resolver.value(patch.expression) for patch in patches]
    # Each %pcrel_lo needs what the instruction that it names took, and that may stand below it.
    distances: dict[int, Distance] = {
        origin + offset: patch.distance(value, origin + offset)
        for patch, offset, value in zip(patches, offsets, values, strict=True)
        if patch.rule is Rule.PC_HIGH
    }
    for patch, offset, value in zip(patches, offsets, values, strict=True):
        end = offset + patch.size
        word = int.from_bytes(code[offset:end], "little") | patch.bits(value, origin + offset, distances)
        code[offset:end] = word.to_bytes(patch.size, "little")
