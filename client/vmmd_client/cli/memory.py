"""`vmmctl memory`: guest memory and host memory, as bytes.

Addresses are guest-physical; with --host they are userspace addresses, which no memslot has a say in. Large transfers
go in parts: each is read or written whole, but vCPUs may run between two of them.
"""

from __future__ import annotations

import base64
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .files import SOURCE, Source, output_option, write_file
from .numbers import SIZE, vm_argument
from .screen import Screen, byte_count, cell, table
from .session import asks, asks_if, stdout_is_terminal

if TYPE_CHECKING:
    from ..connection import Client
    from ..vm import Vm

PART_BYTES = 512 << 10
"""Bytes of one call of a large transfer."""

_LINE_BYTES = 16

host_option = click.option("--host", is_flag=True, help="The address is one of host memory (userspace_addr).")
address_argument = click.argument("address", type=SIZE)
length_argument = click.argument("length", type=SIZE)


@click.group()
def memory() -> None:
    """Read, write and dump memory; map and unmap host memory."""


@memory.command()
@vm_argument
@address_argument
@length_argument
@host_option
@output_option
@asks
async def read(
    vmmd: Client, screen: Screen, vm: str, address: int, length: int, host: bool, output: Path | None
) -> None:
    """Read bytes, to a file or to stdout; a terminal is shown them as `hexdump` does.

    JSON: {"address", "length", "data": base64}; with --output {"address", "length", "output"}
    """
    data = await _read(vmmd.vm(vm), screen, address, length, host=host)
    if output is not None:
        write_file(output, data)
        screen.note(f"{byte_count(length)} written to {output}")
        if screen.as_json:
            screen.json({"address": hex(address), "length": length, "output": str(output)})
    elif screen.as_json:
        encoded = base64.b64encode(data).decode("ascii")
        screen.json({"address": hex(address), "length": length, "data": encoded})
    elif stdout_is_terminal():
        _write_dump(data, address)
    else:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()


@memory.command()
@vm_argument
@address_argument
@length_argument
@host_option
@asks
async def hexdump(vmmd: Client, screen: Screen, vm: str, address: int, length: int, host: bool) -> None:
    """Show bytes in hexadecimal and as ASCII; lines that repeat the one before them are one `*`.

    JSON: {"address", "length", "data": base64}
    """
    data = await _read(vmmd.vm(vm), screen, address, length, host=host)
    if screen.as_json:
        encoded = base64.b64encode(data).decode("ascii")
        screen.json({"address": hex(address), "length": length, "data": encoded})
    else:
        _write_dump(data, address)


def _says_what(digits: str | None, text: str | None, source: Source | None, **_: object) -> None:
    given_bytes(digits, text, source)


@memory.command()
@vm_argument
@address_argument
@host_option
@click.option("--hex", "digits", metavar="DIGITS", help="The bytes, in hexadecimal.")
@click.option("--text", metavar="TEXT", help="The bytes, as text in UTF-8.")
@click.option("--file", "source", type=SOURCE, metavar="FILE", help="The bytes, from a file; - is stdin.")
@asks_if(_says_what)
async def write(
    vmmd: Client,
    screen: Screen,
    vm: str,
    address: int,
    host: bool,
    digits: str | None,
    text: str | None,
    source: Source | None,
) -> None:
    """Write bytes; through memslots they mark pages dirty, with --host they never do.

    JSON: {"address", "length"}
    """
    data = given_bytes(digits, text, source)
    handle = vmmd.vm(vm)
    with screen.progress("writing", len(data)) as advance:
        for at in range(0, len(data), PART_BYTES):
            part = data[at : at + PART_BYTES]
            if host:
                await handle.write_host_memory(address + at, part)
            else:
                await handle.write_guest_memory(address + at, part)
            advance(len(part))
    screen.give(
        {"address": hex(address), "length": len(data)}, cell(f"{byte_count(len(data))} written at {address:#x}")
    )


@memory.command("map")
@vm_argument
@click.argument("size", type=SIZE)
@click.option("--name", metavar="NAME", help="A name for people.")
@click.option("--sparse", is_flag=True, help="Count only the pages that are touched against the limits.")
@asks
async def map_(vmmd: Client, screen: Screen, vm: str, size: int, name: str | None, sparse: bool) -> None:
    """Map zeroed host memory, and show its userspace address.

    JSON: {"userspace_addr"}
    """
    address = await vmmd.vm(vm).map_host_memory(size, name, sparse=sparse or None)
    screen.give({"userspace_addr": hex(address)}, hex(address))


@memory.command()
@vm_argument
@address_argument
@click.argument("size", type=SIZE)
@asks
async def unmap(vmmd: Client, screen: Screen, vm: str, address: int, size: int) -> None:
    """Unmap whole pages of host memory, by their userspace address.

    JSON: {"userspace_addr", "size"}
    """
    await vmmd.vm(vm).unmap_host_memory(address, size)
    screen.give(
        {"userspace_addr": hex(address), "size": hex(size)},
        table(("", ""), [("unmapped", f"[{address:#x}, {address + size:#x})")]),
    )


def hexdump_lines(data: bytes, address: int) -> Iterator[str]:
    """Give the lines of a dump: the address, sixteen bytes, and those of them that ASCII can show."""
    before, starred = b"", False
    for at in range(0, len(data), _LINE_BYTES):
        line = data[at : at + _LINE_BYTES]
        if line == before and at + _LINE_BYTES < len(data):
            if not starred:
                yield "*"
            starred = True
            continue
        before, starred = line, False
        shown = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in line)
        halves = f"{line[:8].hex(' '):<23}  {line[8:].hex(' '):<23}"
        yield f"{address + at:016x}  {halves}  |{shown}|"


def _write_dump(data: bytes, address: int) -> None:
    for line in hexdump_lines(data, address):
        click.echo(line)


async def _read(vm: Vm, screen: Screen, address: int, length: int, *, host: bool) -> bytes:
    read_part = vm.read_host_memory if host else vm.read_guest_memory
    data = bytearray()
    with screen.progress("reading", length) as advance:
        for at in range(0, length, PART_BYTES):
            part = await read_part(address + at, min(PART_BYTES, length - at))
            data += part
            advance(len(part))
    return bytes(data)


def given_bytes(digits: str | None, text: str | None, source: Source | None) -> bytes:
    """Give the bytes that one of three options names.

    Raises:
        click.UsageError: it is not one, or they are no bytes.
    """
    if sum(each is not None for each in (digits, text, source)) != 1:
        raise click.UsageError("say what to write: one of --hex, --text and --file")
    if source is not None:
        return source.data
    if text is not None:
        return text.encode("utf-8", errors="surrogateescape")
    try:
        return bytes.fromhex((digits or "").removeprefix("0x"))
    except ValueError:
        raise click.UsageError(f"--hex {digits!r} is no pairs of hexadecimal digits, as 13000000") from None
