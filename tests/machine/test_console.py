"""The console: bounded, and read by position."""

from __future__ import annotations

from vmmd.machine.console import CONSOLE_BYTES, Console


def test_a_new_console_is_empty() -> None:
    assert Console().read() == (b"", 0)


def test_output_is_read_from_a_position_on_and_reading_takes_nothing() -> None:
    console = Console()
    console.write(b"hello ")
    _, next_ = console.read()
    console.write(b"world")
    assert console.read(next_) == (b"world", 11)
    assert console.read() == (b"hello world", 11)
    assert console.read(10) == (b"d", 11)


def test_at_its_end_there_is_nothing_yet_and_the_position_stays() -> None:
    console = Console()
    console.write(b"abc")
    assert console.read(3) == (b"", 3)
    assert console.read(99) == (b"", 3)


def test_the_oldest_output_goes_and_positions_go_on_counting() -> None:
    console = Console(capacity=4)
    console.write(b"abc")
    console.write(b"def")
    assert console.read() == (b"cdef", 6)
    assert console.read(1) == (b"cdef", 6)
    assert console.read(4) == (b"ef", 6)
    console.write(b"0123456789")
    assert console.read(6) == (b"6789", 16)


def test_a_console_keeps_a_mebibyte_by_default() -> None:
    console = Console()
    console.write(b"x" * (CONSOLE_BYTES + 1))
    data, next_ = console.read()
    assert (len(data), next_) == (CONSOLE_BYTES, CONSOLE_BYTES + 1)
