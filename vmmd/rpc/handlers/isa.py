"""The assembler, on a thread of its own: a long source takes seconds, and the event loop has others to answer."""

import asyncio
import errno

from vmmd.api import isa
from vmmd.isa.assembler import AssemblyError, assemble
from vmmd.kvm.errors import KvmError
from vmmd.rpc.handlers.registry import Core, handles
from vmmd.rpc.scope import BodyScope


@handles("isa.assemble")
async def _assemble(_core: Core, params: isa.AssembleParams, _scope: BodyScope) -> isa.AssembleResult:
    try:
        assembly = await asyncio.to_thread(assemble, params.source, params.origin)
    except AssemblyError as error:
        raise KvmError(errno.EINVAL, str(error), line=error.line, column=error.column) from None
    return isa.AssembleResult(code=assembly.code, symbols=assembly.symbols)
