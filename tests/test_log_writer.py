"""Log lines on their way to a pipe: read slowly, not at all, or by nobody any more."""

import os
import threading
from collections.abc import Iterator

import pytest

from vmmd.log_writer import MOST_WAITING_BYTES, LogWriter

LINE = "x" * 1023 + "\n"


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    yield reading, writing
    os.close(reading)
    os.close(writing)


def read_all(reading: int, size: int) -> bytes:
    text = b""
    while len(text) < size:
        text += os.read(reading, 1 << 16)
    return text


def test_lines_come_out_in_their_order(pipe: tuple[int, int]) -> None:
    writer = LogWriter(pipe[1], lambda _lines: None)
    for number in range(100):
        writer.write(f"{number}\n")
    writer.close()
    assert os.read(pipe[0], 1 << 16).decode().split() == [str(number) for number in range(100)]


def test_a_reader_that_does_not_read_stops_nobody_and_is_told_what_it_missed(pipe: tuple[int, int]) -> None:
    told: list[int] = []
    was_told = threading.Event()

    def tell(lines: int) -> None:
        told.append(lines)
        was_told.set()

    writer = LogWriter(pipe[1], tell)
    written = 3 * MOST_WAITING_BYTES // len(LINE)
    for _ in range(written):
        writer.write(LINE)
    dropped = writer.dropped
    assert dropped > 0
    read_all(pipe[0], (written - dropped) * len(LINE))
    assert was_told.wait(20)
    assert told == [dropped]
    writer.write("after\n")
    writer.close()
    assert os.read(pipe[0], 100) == b"after\n"


def test_the_end_does_not_wait_for_a_reader_that_never_reads(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmmd.log_writer._LAST_LINES_S", 0.01)
    writer = LogWriter(pipe[1], lambda _lines: None)
    for _ in range(1000):
        writer.write(LINE)
    writer.close()
    read_all(pipe[0], 1000 * len(LINE))


def test_a_descriptor_that_does_not_block_loses_nothing(pipe: tuple[int, int]) -> None:
    os.set_blocking(pipe[1], False)
    writer = LogWriter(pipe[1], lambda _lines: None)
    for _ in range(1000):
        writer.write(LINE)
    assert read_all(pipe[0], 1000 * len(LINE)) == LINE.encode() * 1000
    writer.close()


def test_a_reader_that_has_gone_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    writer = LogWriter(writing, lambda _lines: None)
    writer.write("one\n")
    writer.close()
    os.close(writing)
