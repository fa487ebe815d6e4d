"""The process that translates: it reads guest code from a connection and answers with machine code.

A process of its own, for LLVM has one lock a process, and building and optimising a region takes the GIL for longer
than the event loop can wait. It holds nothing from one region to the next, and ends when its connection does: with the
daemon, however that ends.
"""

from __future__ import annotations

import os
import resource
import sys
from multiprocessing.connection import Connection

from vmmd.isa.hot.messages import MOST_BYTES, Answer, Request, Untranslated
from vmmd.isa.hot.objects import ObjectMaker
from vmmd.isa.hot.regions import find_region

_MOST_MEMORY_BYTES = 2 << 30
_NICE = 3
"""As much as workers: so it gives way to the event loop."""


def answer(maker: ObjectMaker, request: Request) -> Answer | Untranslated:
    """Translate the region at a request's entry."""
    region = find_region(request.entry, request.code_at, request.code, request.most_instructions)
    if region is None:
        return Untranslated("its first instruction is left to the interpreter")
    try:
        code = maker.code_of(region)
    except (ValueError, RuntimeError, MemoryError) as error:
        return Untranslated(f"{type(error).__name__}: {error}")
    extents = tuple((gpa, len(words)) for gpa, words in region.extents)
    return Answer(tuple(region.heads), tuple(region.blocks), extents, code)


def main() -> None:
    """Answer requests until there are no more."""
    resource.setrlimit(resource.RLIMIT_AS, (_MOST_MEMORY_BYTES, _MOST_MEMORY_BYTES))
    os.nice(_NICE)
    connection = Connection(int(sys.argv[1]))
    maker = ObjectMaker()
    while True:
        try:
            request = Request.unpack(connection.recv_bytes(MOST_BYTES))
            connection.send_bytes(answer(maker, request).pack())
        except (EOFError, ConnectionError):
            return


if __name__ == "__main__":
    main()
