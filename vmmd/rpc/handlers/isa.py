"""Assembler and disassembler, on a thread of their own: much text takes seconds, and the event loop has others."""

import asyncio
import errno

from vmmd.api import isa
from vmmd.api.methods import METHODS
from vmmd.isa.assembler import AssemblyError, assemble
from vmmd.isa.disassemble import disassemble
from vmmd.kvm.errors import KvmError
from vmmd.rpc.handlers.registry import Core, handles
from vmmd.rpc.results import Encoded
from vmmd.rpc.scope import BodyScope

# A line in the reply, its members' names and the longest text included.
_LINE_BYTES = 128

_LINES_A_PIECE = 256

_LINES = METHODS["isa.disassemble"].result_adapter


@handles("isa.assemble")
async def _assemble(_core: Core, params: isa.AssembleParams, _scope: BodyScope) -> isa.AssembleResult:
    try:
        assembly = await asyncio.to_thread(assemble, params.source, params.origin)
    except AssemblyError as error:
        raise KvmError(errno.EINVAL, str(error), line=error.line, column=error.column) from None
    return isa.AssembleResult(code=assembly.code, symbols=assembly.symbols)


@handles("isa.disassemble")
async def _disassemble(_core: Core, params: isa.DisassembleParams, scope: BodyScope) -> Encoded:
    most_bytes = scope.reply_left // _LINE_BYTES * 4
    if len(params.code) > most_bytes:
        raise KvmError(
            errno.E2BIG,
            f"the lines of {len(params.code)} bytes do not fit in the reply, which has room for those of {most_bytes} "
            "(limits.reply_bytes); give less code at a time",
        )
    try:
        return await asyncio.to_thread(_lines, params)
    except ValueError as error:
        raise KvmError(errno.EINVAL, str(error)) from None


def _lines(params: isa.DisassembleParams) -> Encoded:
    """Give the lines as JSON text: models are made for a piece at a time, so that few are alive at once."""
    lines = disassemble(params.code, params.origin)
    parts = []
    for start in range(0, len(lines), _LINES_A_PIECE):
        piece = [isa.Line(address=at, word=word, text=text) for at, word, text in lines[start : start + _LINES_A_PIECE]]
        parts.append(_LINES.dump_json(piece)[1:-1])
    return Encoded(b"[" + b",".join(parts) + b"]")
