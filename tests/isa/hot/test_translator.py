"""What is hot becomes translated code; and where the translating process fails, guests run on."""

from __future__ import annotations

import os
import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.isa.machine import BareMachine, bare_machine
from tests.isa.turns import run
from vmmd.isa.assembler import assemble
from vmmd.isa.engine import CompiledEngine
from vmmd.isa.hot import process as translating
from vmmd.isa.hot.arena import Arena
from vmmd.isa.hot.messages import Answer, Request, Untranslated, unpack_answer
from vmmd.isa.hot.table import RegionTable, Translated
from vmmd.isa.hot.translator import Translator
from vmmd.isa.stop import Stop

LOOP = "1: addi a0, a0, 1\n addi a1, a1, 2\n j 1b"
REQUEST = Request(0x1000, 0x1000, assemble(LOOP, 0x1000).code, 64)


class Told:
    """What a translator said went wrong."""

    def __init__(self) -> None:
        self.sentences: list[str] = []
        self._came = threading.Event()

    def __call__(self, sentence: str) -> None:
        self.sentences.append(sentence)
        self._came.set()

    def wait(self) -> str:
        assert self._came.wait(60), "nothing was told"
        return self.sentences[0]


@contextmanager
def machine_on(
    cache_dir: Path, told: Callable[[str], None] = lambda _: None, **options: float
) -> Iterator[tuple[CompiledEngine, BareMachine]]:
    engine = CompiledEngine(cache_dir, Translator(told, **options))  # type: ignore[arg-type]
    try:
        yield engine, bare_machine(engine, assemble(LOOP).code)
    finally:
        engine.close()


def go_on(engine: CompiledEngine, machine: BareMachine, enough: Callable[[], bool]) -> None:
    """Run the loop until something is so."""
    record = machine.context.record
    while not enough():
        before = record.retired
        record.budget = 300_000
        assert run(engine, machine.context, machine.view) is Stop.BUDGET
        assert record.retired == before + 300_000
    assert record.x[10] == -(-record.retired // 3) or record.x[10] * 3 - record.retired in {0, 1, 2}


def test_a_loop_that_runs_often_is_translated_and_runs_on_to_the_instruction(cache_dir: Path) -> None:
    with machine_on(cache_dir) as (engine, machine):
        go_on(engine, machine, lambda: engine.translations.translated > 0)
        stats = engine.translations
        assert stats.entries >= 1
        assert stats.code_bytes > 0
        go_on(engine, machine, lambda: machine.context.record.jump_count > 0)


def test_code_that_runs_once_is_not_asked_for(cache_dir: Path) -> None:
    engine = CompiledEngine(cache_dir, Translator())
    machine = bare_machine(engine, assemble("addi a0, a0, 1\n" * 5000 + "wfi").code)
    machine.context.record.budget = 10_000
    run(engine, machine.context, machine.view)
    assert engine.translator is not None
    assert engine.translator.process_id is None
    engine.close()


def test_a_process_that_is_killed_is_told_of_and_the_guest_runs_on(
    cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(self: translating.TranslatingProcess, request: Request) -> Answer | Untranslated:
        process, _ = self._running()
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        return ask(self, request)

    ask = translating.TranslatingProcess.ask
    monkeypatch.setattr(translating.TranslatingProcess, "ask", killed)
    told = Told()
    with machine_on(cache_dir, told) as (engine, machine):
        go_on(engine, machine, lambda: bool(told.sentences))
        assert "exit status -9" in told.wait()
        assert "guests are interpreted" in told.wait()
        assert engine.translations.failures == 1
        assert engine.translations.translated == 0


def test_a_process_that_does_not_answer_is_ended(cache_dir: Path) -> None:
    told = Told()
    with machine_on(cache_dir, told, answer_s=0.001) as (engine, machine):
        go_on(engine, machine, lambda: bool(told.sentences))
        assert "exit status -9" in told.wait()


def test_without_executable_memory_the_guest_runs_on(cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("vmmd.isa.hot.arena.os.memfd_create", refused)
    told = Told()
    with machine_on(cache_dir, told) as (engine, machine):
        go_on(engine, machine, lambda: bool(told.sentences))
        assert "Operation not permitted" in told.wait()


def test_without_a_thread_for_the_translator_guests_run_on_and_it_is_tried_again(
    cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    told = Told()
    with machine_on(cache_dir, told) as (engine, machine):
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refused)
            go_on(engine, machine, lambda: bool(told.sentences))
        assert "can't start new thread" in told.wait()
        assert engine.translations.failures >= 1
        go_on(engine, machine, lambda: engine.translations.translated > 0)


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), MemoryError()], ids=["thread", "memory"])
def test_what_a_request_lacks_is_told_and_the_translator_goes_on(
    error: Exception, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise error

    told = Told()
    where = (threading.Timer, "start") if isinstance(error, RuntimeError) else (Arena, "put")
    with machine_on(cache_dir, told) as (engine, machine):
        with monkeypatch.context() as patch:
            patch.setattr(*where, refused)
            go_on(engine, machine, lambda: bool(told.sentences))
        assert (str(error) or "MemoryError") in told.wait()
        assert engine.translations.failures == 1
        go_on(engine, machine, lambda: engine.translations.translated > 0)


def test_a_translator_that_was_closed_starts_no_process(cache_dir: Path) -> None:
    with machine_on(cache_dir) as (engine, machine):
        assert engine.translator is not None
        engine.close()
        with pytest.raises(translating.Gone, match="closed"):
            engine.translator.translate_now(0, machine.view)
        assert engine.translator.process_id is None


def test_a_process_whose_daemon_has_gone_ends_quietly() -> None:
    process, connection = translating.TranslatingProcess()._running()
    connection.send_bytes(REQUEST.pack())
    connection.close()
    assert process.wait(60) == 0


def test_a_failed_process_is_started_again_for_the_next_region() -> None:
    process = translating.TranslatingProcess()
    assert isinstance(process.ask(REQUEST), Answer)
    first = process.pid
    process.kill()
    with pytest.raises(translating.Gone, match="exit status -9"):
        process.ask(REQUEST)
    assert process.pid is None
    assert isinstance(process.ask(REQUEST), Answer)
    assert process.pid != first
    process.end()


def test_what_cannot_be_translated_is_answered_with_the_reason() -> None:
    process = translating.TranslatingProcess()
    answer = process.ask(Request(0x1000, 0x1000, assemble("wfi").code, 64))
    assert answer == Untranslated("its first instruction is left to the interpreter")
    process.end()


def test_when_the_arena_is_full_all_is_forgotten_and_made_again(cache_dir: Path) -> None:
    engine = CompiledEngine(cache_dir, Translator(is_forced=True, arena_bytes=4096))
    try:
        made = 0
        while not engine.translations.forgotten:
            # Another program at the same address is another region.
            made += 1
            machine = bare_machine(engine, assemble(f"addi a2, a2, {made}\n" + LOOP).code)
            machine.context.record.budget = 100
            assert run(engine, machine.context, machine.view) is Stop.BUDGET
            assert machine.context.record.x[12] == made
            assert engine.translations.translated >= made
        assert 0 < engine.translations.code_bytes <= 4096
    finally:
        engine.close()


def test_more_programs_at_one_address_than_are_kept_are_translated_too(cache_dir: Path) -> None:
    with machine_on(cache_dir) as (engine, _):
        for number in range(18):
            # Each VM has another program where the others have theirs.
            machine = bare_machine(engine, assemble(f"1: addi a2, a2, {number}\n addi a0, a0, 1\n j 1b").code)
            record = machine.context.record
            while engine.translations.translated <= number:
                record.budget = 300_000
                assert run(engine, machine.context, machine.view) is Stop.BUDGET
            assert record.x[12] == number * record.x[10]
        # The oldest made way.
        assert engine.translations.entries == 16


def test_a_vcpu_that_does_not_run_keeps_no_old_table(cache_dir: Path) -> None:
    with machine_on(cache_dir) as (engine, machine):
        translator, record = engine.translator, machine.context.record
        assert translator is not None
        arena = Arena(1 << 16)
        used = weakref.ref(arena)
        translator.table = RegionTable(arena)
        del arena
        record.budget = 10
        assert run(engine, machine.context, machine.view) is Stop.BUDGET
        assert used() is not None
        translator.table = RegionTable()
        assert used() is None
        record.budget = 10
        assert run(engine, machine.context, machine.view) is Stop.BUDGET
        assert record.retired == 20


@pytest.mark.parametrize(
    "message", [b"", b"short", bytes(8), (9).to_bytes(8, "little"), (1).to_bytes(8, "little") + b"\xff" * 8]
)
def test_a_message_that_is_no_answer_is_refused(message: bytes) -> None:
    with pytest.raises(ValueError, match=r"message|answer"):
        unpack_answer(message)


def test_an_answer_comes_back_as_it_was_and_must_be_of_its_request() -> None:
    answer = Answer((0x1000, 0x1004), (0x1000, 0x1004), ((0x1000, 12),), b"\xc3")
    assert unpack_answer(answer.pack()) == answer
    answer.check(REQUEST)
    for wrong in (
        Answer((0x2000,), (0x1000,), ((0x1000, 12),), b"\xc3"),
        Answer((0x1000,), (0x1000,), ((0x1000, 16),), b"\xc3"),
        Answer((0x1000,), (0x1000,), ((0xFFC, 4),), b"\xc3"),
        Answer((0x1000,), (0x1000,), ((0x1000, 12),), b""),
        Answer((0x1000, 0x1004), (0x1000,), ((0x1000, 12),), b"\xc3"),
        Answer((0x1000, 0x1000), (0x1000,), ((0x1000, 12),), b"\xc3"),
        Answer((0x1000,), (0x1000, 0x100C), ((0x1000, 12),), b"\xc3"),
        Answer((0x1000,), (0x1000, 0x1002), ((0x1000, 12),), b"\xc3"),
    ):
        with pytest.raises(ValueError, match="an answer"):
            wrong.check(REQUEST)
    assert Request.unpack(REQUEST.pack()) == REQUEST


def test_a_table_grows_and_the_one_before_stays_as_it_was() -> None:
    arena = Arena(1 << 16)
    first = arena.put(b"\x90" * 100)
    second = arena.put(b"\xc3")
    assert first is not None
    assert second == first + 128
    assert arena.put(bytes(1 << 16)) is None
    table = RegionTable()
    grown = table
    for pc in range(0, 4000, 4):
        grown = grown.with_regions(arena, Translated.of([pc], first, [(pc, b"code")]))
    assert not table.regions
    assert [region.pc for region in grown.regions] == list(range(0, 4000, 4))
    assert 1 << 64 - grown.shift >= 2 * len(grown.regions)
