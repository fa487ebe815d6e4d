"""Python in documents: whole programs, and snippets that go on from one to the next, with and without an event loop."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import inspect
import io
import linecache
import types
from pathlib import Path
from typing import Any


class Snippets:
    """The two conversations of a document, `python async` and `python sync`, each with names of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._loop = asyncio.new_event_loop()
        self._names: dict[bool, dict[str, Any]] = {True: {}, False: {}}

    def run(self, source: str, place: str, *, has_loop: bool) -> str:
        """Run a snippet, and give what it prints.

        Args:
            source: The snippet; with an event loop `await` may stand outside of functions.
            place: Where it is, for tracebacks.
            has_loop: Which of the two conversations goes on.
        """
        linecache.cache[place] = (len(source), None, source.splitlines(keepends=True), place)
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT if has_loop else 0
        code = compile(source, place, "exec", flags=flags)
        run = types.FunctionType(code, self._names[has_loop])
        with contextlib.chdir(self._folder), contextlib.redirect_stdout(io.StringIO()) as printed:
            result = run()
            if inspect.isawaitable(result):
                self._loop.run_until_complete(result)
        return printed.getvalue()

    def close(self) -> None:
        """End the conversations."""
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()
