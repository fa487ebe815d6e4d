"""Who finds out what is hot, has it translated, and hands out the table of what there is.

Workers note the jump targets that their vCPUs met; of what was met often the hottest is asked of the translating
process first, on a thread of its own. Nothing waits for it: until its answer is there, and where there is none, the
interpreter goes on. When the process fails it is left alone for a while, each time for twice as long.

Regions belong to no VM: they are entered wherever the same bytes are at the same address.
"""

from __future__ import annotations

import errno
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from vmmd.isa.context import SAMPLE_EXIT, Context
from vmmd.isa.hot.arena import Arena
from vmmd.isa.hot.messages import Answer, Request, Untranslated
from vmmd.isa.hot.process import ANSWER_S, Gone, TranslatingProcess
from vmmd.isa.hot.regions import MOST_INSTRUCTIONS, translatable
from vmmd.isa.hot.table import Extents, RegionTable, Translated
from vmmd.isa.hot.wanted import Wanted, Wish
from vmmd.memory import access
from vmmd.memory.view import Run, View

ARENA_BYTES = 32 << 20
"""Machine code at most; when it is used up, all of it is forgotten, and what is hot then is translated anew."""

MOST_ENTRIES = 8192
"""Entries of the table at most, with the same end."""

_HOT = 4
"""How many samples of an address a region is asked for at."""

_MOST_VERSIONS = 16
"""Regions that are entered at one address at most: a search compares one after the other. The oldest makes way, since
programs of any number of VMs begin at the same addresses."""

_BEFORE_BYTES, _BEHIND_BYTES = 4 << 10, 12 << 10
"""How much code before and behind an entry is looked at."""

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 300.0


class TranslationStats(NamedTuple):
    """What there is now, and counters since the start.

    Attributes:
        entries: entries of the table.
        code_bytes: machine code in memory.
        translated: regions that were made.
        refused: requests that no region was made of.
        failures: how often the translating process failed.
        forgotten: how often all regions were forgotten to make room.
        translating_ns: how long the translating process was waited for.
    """

    entries: int = 0
    code_bytes: int = 0
    translated: int = 0
    refused: int = 0
    failures: int = 0
    forgotten: int = 0
    translating_ns: int = 0


@dataclass(frozen=True, slots=True)
class _Region:
    """A region as it is looked for: where its machine code is, its entries and blocks, and what it was made of."""

    address: int
    entries: frozenset[int]
    blocks: frozenset[int]
    extents: Extents

    def is_in(self, code_at: int, code: bytes) -> bool:
        """Tell whether the code at an address is what it was made of."""
        return all(
            code_at <= gpa and code[gpa - code_at : gpa - code_at + len(made_of)] == made_of
            for gpa, made_of in self.extents
        )


class Translator:
    """The regions of one engine.

    Args:
        on_failure: told, on the translator's thread, what went wrong and what comes of it.
        is_forced: whether contexts stop at every jump to what is not translated, and wait until it is; for tests, which
            want translated code from the first instruction on.
        most_instructions: a region's size at most.
        hot: how many samples of an address a region is asked for at.
        arena_bytes: machine code at most.
        answer_s: how long the process may take for a region, in seconds.

    Attributes:
        table: the newest; a context takes it before it enters guest mode.
    """

    def __init__(
        self,
        on_failure: Callable[[str], None] = lambda _: None,
        *,
        is_forced: bool = False,
        most_instructions: int = MOST_INSTRUCTIONS,
        hot: int = _HOT,
        arena_bytes: int = ARENA_BYTES,
        answer_s: float = ANSWER_S,
    ) -> None:
        self.table = RegionTable(is_forced=is_forced)
        self._on_failure = on_failure
        self._most_instructions = most_instructions
        self._arena_bytes = arena_bytes
        self._process = TranslatingProcess(answer_s)
        self._stats = TranslationStats()
        self._wanted = Wanted(hot)
        # What there is, under a lock that workers share.
        self._lock = threading.Lock()
        self._regions: list[_Region] = []
        # Where machine code goes, for whoever serves.
        self._serving = threading.Lock()
        self._arena: Arena | None = None
        self._thread: threading.Thread | None = None
        self._is_closed = threading.Event()

    @property
    def process_id(self) -> int | None:
        """The translating process, where there is one."""
        return self._process.pid

    def stats(self) -> TranslationStats:
        """Return the counters."""
        return self._stats

    def close(self) -> None:
        """End the process and the thread. Regions that are there stay."""
        self._is_closed.set()
        self._wanted.close()
        # Whoever waits for its answer sees it end.
        self._process.close()
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.join()
        self._process.end()

    # On workers.

    def note(self, context: Context, view: View) -> None:
        """Take the samples of a context that has this view, and ask for what has become hot."""
        record = context.record
        samples = Counter(record.samples[: record.sample_count])
        record.sample_count = 0
        for sample in self._wanted.count(samples):
            wish = self._wish(sample & ~3, view, is_exit=sample & 3 == SAMPLE_EXIT)
            # A wish that nobody would take is dropped, and comes again where the address is met much more often.
            if wish is not None and self._start():
                self._wanted.put(wish)

    def _start(self) -> bool:
        """Start the thread, if it does not run; tell whether it does."""
        with self._lock:
            if self._thread is not None or self._is_closed.is_set():
                return self._thread is not None
            thread = threading.Thread(target=self._work, name="vmmd-translator", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:
                self._count(failures=1)
                failure = f"the translator cannot be started: {error}; guests are interpreted"
            else:
                self._thread = thread
                return True
        self._on_failure(failure)
        return False

    def translate_now(self, pc: int, view: View) -> bool:
        """Have what is at a pc translated, and wait for it; False where there is nothing to be had.

        Raises:
            Gone: the translating process failed.
        """
        wish = self._wish(pc, view, is_exit=True)
        if wish is None:
            return False
        with self._serving:
            table = self.table
            self._serve(wish)
            return self.table is not table

    def _wish(self, pc: int, view: View, *, is_exit: bool) -> Wish | None:
        """Return the wish for a region, with the code around it; None where none can be or is to be made."""
        there = view.find(pc)
        if there is None or there.piece is None or not _is_translatable(there):
            return None
        start = pc - min(_BEFORE_BYTES, there.offset, there.piece_offset)
        run = view.find(start)
        if run is None or run.piece is None:
            return None
        wish = Wish(pc, start, access.load(run, min(run.size, pc - start + _BEHIND_BYTES)), is_exit)
        return wish if self._request(wish) is not None else None

    def _request(self, wish: Wish) -> Request | None:
        """Return what the process is asked for a wish; None where that is of no use by what there is now.

        A loop that is inside of a region will be met there, and only what regions are left for gets one of its own.
        """
        pc = wish.pc
        with self._lock:
            there = [region for region in self._regions if pc in (region.entries if wish.is_exit else region.blocks)]
        if any(region.is_in(wish.code_at, wish.code) for region in there):
            return None
        return Request(pc, wish.code_at, wish.code, self._most_instructions)

    # On the translator's thread.

    def _work(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while (wish := self._wanted.take()) is not None:
            try:
                with self._serving:
                    self._serve(wish)
                pause_s = _FIRST_PAUSE_S
            except (Gone, OSError, MemoryError) as failure:
                if self._is_closed.is_set():
                    return
                self._count(failures=1)
                why = str(failure) or type(failure).__name__
                self._on_failure(f"{why}; guests are interpreted, and the next is started in {pause_s:.0f} s")
                self._is_closed.wait(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _count(self, **more: int) -> None:
        stats = self._stats
        self._stats = stats._replace(**{name: getattr(stats, name) + by for name, by in more.items()})

    def _serve(self, wish: Wish) -> None:
        """Have one region translated, and make it part of the table.

        Raises:
            Gone: the process has failed; what was wanted is dropped, for it may be the reason.
        """
        # It may have become part of one that was made while it waited.
        request = self._request(wish)
        if request is None:
            return
        start = time.monotonic_ns()
        answer = self._process.ask(request)
        self._count(translating_ns=time.monotonic_ns() - start)
        if isinstance(answer, Untranslated):
            self._count(refused=1)
        else:
            self._install(answer, request)

    def _entries_in(self, request: Request) -> set[int]:
        """Return the entries of all regions that are made of the bytes of a request."""
        with self._lock:
            same = [region for region in self._regions if region.is_in(request.code_at, request.code)]
        return {entry for region in same for entry in region.entries}

    def _install(self, answer: Answer, request: Request) -> None:
        # An entry that another region has already stays that one's.
        taken = self._entries_in(request)
        entries = [entry for entry in answer.entries if entry not in taken]
        arena, address = self._place(answer.code, len(entries))
        self._make_way(entries)
        extents = []
        for gpa, size in answer.extents:
            offset = gpa - request.code_at
            extents.append((gpa, request.code[offset : offset + size]))
        with self._lock:
            self._regions.append(_Region(address, frozenset(entries), frozenset(answer.blocks), tuple(extents)))
        self.table = self.table.with_regions(arena, Translated.of(entries, address, extents))
        self._count(translated=1)
        self._stats = self._stats._replace(entries=len(self.table.regions), code_bytes=arena.used)

    def _make_way(self, entries: list[int]) -> None:
        """Forget the oldest region of each entry that has too many."""
        with self._lock:
            having = ([region.address for region in self._regions if entry in region.entries] for entry in entries)
            oldest = {addresses[0] for addresses in having if len(addresses) >= _MOST_VERSIONS}
            if oldest:
                self._regions = [region for region in self._regions if region.address not in oldest]
        if oldest:
            self.table = self.table.without(oldest)

    def _place(self, code: bytes, entries: int) -> tuple[Arena, int]:
        """Put machine code into the arena, or into a new one where that is full; return it, and the address.

        Raises:
            OSError: the system gives no executable memory, or the code is more than an arena holds.
        """
        if self._arena is not None and len(self.table.regions) + entries <= MOST_ENTRIES:
            address = self._arena.put(code)
            if address is not None:
                return self._arena, address
        arena = Arena(self._arena_bytes)
        address = arena.put(code)
        if address is None:
            raise OSError(errno.ENOMEM, f"{len(code)} bytes of machine code are more than {arena.size} bytes hold")
        if self._arena is not None:
            self._count(forgotten=1)
        self._arena = arena
        self.table = RegionTable(is_forced=self.table.is_forced)
        with self._lock:
            self._regions.clear()
        return arena, address


def _is_translatable(run: Run) -> bool:
    """Tell whether a region can begin where a run does."""
    return run.piece is not None and translatable(int.from_bytes(access.load(run, 4), "little")) is not None
