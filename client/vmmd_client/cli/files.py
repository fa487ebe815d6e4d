"""Files that commands read and write.

A file is read while the command line is: a read of stdin that blocks must not keep an event loop from Ctrl-C.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from ..errors import PlanError


@dataclass(frozen=True, slots=True)
class Source:
    """What a file holds.

    Attributes:
        name: what the user called it.
        data: its bytes.
    """

    name: str
    data: bytes

    def text(self) -> str:
        """Give it as text.

        Raises:
            PlanError: it is none.
        """
        try:
            return self.data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise PlanError(f"{self.name} is no text: its byte {error.start} is no UTF-8") from None


class SourceType(click.File):
    """A file's path, or - for stdin; gives what it holds."""

    def __init__(self) -> None:
        super().__init__("rb")

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read the file, or tell the user why it cannot be."""
        if isinstance(value, Source) or (ctx is not None and ctx.resilient_parsing):
            return value
        try:
            with super().convert(value, param, ctx) as file:
                return Source("stdin" if value == "-" else str(value), file.read())
        except OSError as error:
            self.fail(f"{value}: {error.strerror}", param, ctx)


SOURCE = SourceType()

output_option = click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write the bytes there."
)


def write_file(path: Path, data: bytes) -> None:
    """Write a file."""
    path.write_bytes(data)
