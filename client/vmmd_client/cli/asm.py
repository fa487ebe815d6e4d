"""`vmmctl asm` and `vmmctl disasm`: the daemon's assembler and disassembler."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .files import SOURCE, Source, output_option, write_file
from .memory import hexdump_lines
from .numbers import SIZE
from .screen import Screen, byte_count, table
from .session import asks, stdout_is_terminal

if TYPE_CHECKING:
    from ..connection import Client

origin_option = click.option("--origin", type=SIZE, default=0, metavar="ADDRESS", help="Where the first byte lies.")


@click.command()
@click.argument("source", type=SOURCE)
@origin_option
@output_option
@asks
async def asm(vmmd: Client, screen: Screen, source: Source, origin: int, output: Path | None) -> None:
    """Assemble a file of T64 source (- is stdin), to a file or to stdout.

    JSON: {"code": base64, "symbols": {name: "0x…"}}
    """
    program = await vmmd.isa.assemble(source.text(), origin)
    if output is not None:
        write_file(output, program.code)
        screen.note(f"{byte_count(len(program.code))} written to {output}")
    if screen.as_json:
        screen.json(program.model_dump(mode="json"))
    elif output is not None or stdout_is_terminal():
        if output is None:
            for line in hexdump_lines(program.code, origin):
                click.echo(line)
        if program.symbols:
            rows = [(f"{address:#x}", name) for name, address in program.symbols.items()]
            screen.console.print(table((">address", "symbol"), rows))
    else:
        sys.stdout.buffer.write(program.code)
        sys.stdout.buffer.flush()


@click.command()
@click.argument("code", type=SOURCE)
@origin_option
@asks
async def disasm(vmmd: Client, screen: Screen, code: Source, origin: int) -> None:
    """Write code, the bytes of a file (- is stdin), as T64 source.

    JSON: [{"address": "0x…", "word": "0x…", "text"}]
    """
    lines = await vmmd.isa.disassemble(code.data, origin)
    rows = [(f"{line.address:#x}", f"{line.word:08x}", line.text) for line in lines]
    screen.give([line.model_dump(mode="json") for line in lines], table((">", "", ""), rows))
