"""Sequences asked of two at once: of the kernel and of vmmd, each time with a fresh VM on either side."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from tests.conformance.askable import Askable
from tests.conformance.compare import Comparison, Difference, Kernel, Tally
from tests.conformance.recording import Sequence
from tests.conformance.replay import Replay, Subject
from tests.conformance.shrink import Shrinker

MakeKernel = Callable[[Sequence], AbstractAsyncContextManager[Kernel]]
"""Makes a VM of the kernel's, ready for a sequence, for as long as a block lasts."""

MakeSubject = Callable[[], AbstractAsyncContextManager[Subject]]
"""Makes a VM of vmmd's for as long as a block lasts."""


@dataclass(frozen=True)
class Found:
    """A sequence that showed a difference, the shortest like it, and the difference that this one shows.

    `difference` is that of the whole sequence where a second asking did not show it again.
    """

    sequence: Sequence
    shortest: Sequence
    difference: Difference
    comes_again: bool


class Live:
    """Both KVMs; `askable` is what they have in common."""

    def __init__(self, make_kernel: MakeKernel, make_subject: MakeSubject, askable: Askable) -> None:
        self._make_kernel = make_kernel
        self._make_subject = make_subject
        self._askable = askable

    async def ask(self, sequence: Sequence, tally: Tally) -> Difference | None:
        """Ask both a sequence, and return where they first differ."""
        async with self._make_kernel(sequence) as kernel, self._make_subject() as subject:
            replay = Replay(subject)
            await replay.begin(sequence)
            return await Comparison(kernel, replay, self._askable, tally).run(sequence)

    async def ask_all(
        self,
        sequences: Iterable[Sequence],
        tally: Tally,
        *,
        at_once: int = 1,
        most_found: int = 1,
        asked: Callable[[], None] = lambda: None,
    ) -> list[Found]:
        """Ask both many sequences, and shrink those that show a difference.

        Args:
            sequences: what to ask.
            tally: counts what was asked.
            at_once: how many sequences are under way side by side.
            most_found: after so many differences no further sequence is begun.
            asked: called after each sequence.
        """
        left, differing = iter(sequences), list[tuple[Sequence, Difference]]()

        async def ask_some() -> None:
            for sequence in left:
                difference = await self.ask(sequence, tally)
                asked()
                if difference is not None:
                    differing.append((sequence, difference))
                if len(differing) >= most_found:
                    return

        async with asyncio.TaskGroup() as group:
            for _ in range(at_once):
                group.create_task(ask_some())
        return [await self._shrunk(sequence, difference) for sequence, difference in differing[:most_found]]

    async def _shrunk(self, sequence: Sequence, difference: Difference) -> Found:
        async def shows(candidate: Sequence) -> bool:
            return self._askable.allows(candidate) and await self.ask(candidate, Tally()) is not None

        if not await shows(sequence):
            return Found(sequence, sequence, difference, comes_again=False)
        shortest = await Shrinker(shows).shrink(sequence)
        again = await self.ask(shortest, Tally())
        return Found(sequence, shortest, again or difference, comes_again=again is not None)
