"""`vmmctl asm` and `vmmctl disasm`: the daemon's assembler and disassembler."""

import sys
from pathlib import Path
from typing import BinaryIO

import click

from ..connection import Client
from ..errors import PlanError
from .memory import hexdump_lines, write_file
from .numbers import SIZE
from .screen import Screen, table
from .session import asks, stdout_is_terminal

origin_option = click.option("--origin", type=SIZE, default=0, metavar="ADDRESS", help="Where the first byte lies.")


@click.command()
@click.argument("source", type=click.File("rb"))
@origin_option
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write code there."
)
@asks
async def asm(vmmd: Client, screen: Screen, source: BinaryIO, origin: int, output: Path | None) -> None:
    """Assemble a file of T64 source (- is stdin), to a file or to stdout.

    JSON: {"code": base64, "symbols": {name: "0x…"}}
    """
    program = await vmmd.isa.assemble(source_text(source.read(), source.name), origin)
    if output is not None:
        write_file(output, program.code)
        screen.note(f"{len(program.code):,} bytes written to {output}")
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
@click.argument("code", type=click.File("rb"))
@origin_option
@asks
async def disasm(vmmd: Client, screen: Screen, code: BinaryIO, origin: int) -> None:
    """Write code, the bytes of a file (- is stdin), as T64 source.

    JSON: [{"address": "0x…", "word": "0x…", "text"}]
    """
    lines = await vmmd.isa.disassemble(code.read(), origin)
    rows = [(f"{line.address:#x}", f"{line.word:08x}", line.text) for line in lines]
    screen.give([line.model_dump(mode="json") for line in lines], table((">", "", ""), rows))


def source_text(source: bytes, name: str) -> str:
    """Read a file's bytes as source.

    Raises:
        PlanError: they are no text.
    """
    try:
        return source.decode("utf-8")
    except UnicodeDecodeError as error:
        raise PlanError(f"{name} is no assembly source: byte {error.start} is no UTF-8") from None
