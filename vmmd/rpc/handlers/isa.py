"""Assembler and disassembler: much text takes seconds, and the event loop has others meanwhile.

The assembler has a thread. The disassembler writes words one by one, so it does some at a time and gives way between.
"""

import asyncio
import errno

from vmmd.api import isa
from vmmd.api.methods import METHODS
from vmmd.isa.assembler import AssemblyError, assemble
from vmmd.isa.disassemble import check_place, disassemble
from vmmd.kvm.errors import KvmError
from vmmd.rpc.handlers.registry import Core, handles
from vmmd.rpc.progress import Progress
from vmmd.rpc.results import Encoded
from vmmd.rpc.scope import BodyScope

# A line in the reply, its members' names and the longest text included.
_LINE_BYTES = 128

# A piece takes a millisecond or so; it is of whole words.
_PIECE_BYTES = 4 * 64

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
        check_place(params.code, params.origin)
    except ValueError as error:
        raise KvmError(errno.EINVAL, str(error)) from None
    with Progress(scope.caller, len(params.code)) as progress:
        return await _lines(params, progress)


async def _lines(params: isa.DisassembleParams, progress: Progress) -> Encoded:
    """Give the lines as JSON text: models are made for a piece at a time, so that few are alive at once.

    It gives way in a hold of its batch too: a VM that is held waits for all of it, and others need not.
    """
    parts: list[bytes] = []
    progress.begin(lambda: min(len(parts) * _PIECE_BYTES, len(params.code)))
    for start in range(0, len(params.code), _PIECE_BYTES):
        lines = disassemble(params.code[start : start + _PIECE_BYTES], params.origin + start)
        piece = [isa.Line(address=at, word=word, text=text) for at, word, text in lines]
        parts.append(_LINES.dump_json(piece)[1:-1])
        await asyncio.sleep(0)
    return Encoded(b"[" + b",".join(parts) + b"]")
