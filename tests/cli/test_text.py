"""Text of others, numbers of users, dumps and drawings: pure functions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmmd_client.cli.guest_map import MOST_BOXES, draw
from vmmd_client.cli.memory import hexdump_lines
from vmmd_client.cli.numbers import parse_u64
from vmmd_client.cli.text import ConsoleText, one_line
from vmmd_client.slots.memslots import Memslot


@given(st.text())
def test_one_line_of_any_text_is_printable(text: str) -> None:
    assert one_line(text).isprintable()


@given(st.text(st.characters(categories=("L", "N", "P"))))
def test_printable_text_stays_as_it_is(text: str) -> None:
    assert one_line(text) == text


@given(st.lists(st.binary(max_size=8)))
def test_a_console_in_pieces_is_the_console_in_one_piece_and_steers_nothing(pieces: list[bytes]) -> None:
    console = ConsoleText()
    text = "".join(console.take(piece) for piece in pieces) + console.take(b"", last=True)
    assert text == ConsoleText().take(b"".join(pieces), last=True)
    assert text.replace("\n", "").replace("\t", "").isprintable()


def test_newlines_and_tabs_pass_and_a_lone_return_is_shown() -> None:
    assert ConsoleText().take(b"a\tb\r\nc\rd\n\xe2\x82\xac\xff", last=True) == "a\tb\nc\\rd\n€\ufffd"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("4096", 4096),
        ("0x1000", 4096),
        ("0XfF", 255),
        ("64K", 65536),
        ("2m", 2 << 20),
        ("1GiB", 1 << 30),
        ("0x10M", 16 << 20),
        ("0xffffffffffffffff", 2**64 - 1),
    ],
)
def test_sizes_are_read(text: str, value: int) -> None:
    assert parse_u64(text, units=True) == value


@pytest.mark.parametrize("text", ["", " 1", "1 ", "+1", "-1", "1_0", "0b1", "x", "K", "1KK", "1.5M", "٣", "0x1 00"])
def test_what_is_no_number_is_refused_with_what_would_be_one(text: str) -> None:
    with pytest.raises(ValueError, match="write it as"):
        parse_u64(text, units=True)


def test_the_last_line_of_a_dump_is_never_left_out() -> None:
    assert list(hexdump_lines(bytes(40), 0x1000))[-1].startswith("0000000000001020  00 00 00 00 00 00 00 00   ")
    assert list(hexdump_lines(b"", 0)) == []


def slot(number: int, gpa: int, size: int, flags: int = 0) -> Memslot:
    return Memslot(number, flags, gpa, size, 0x1000 * number)


def test_touching_slots_share_an_edge_and_holes_are_said() -> None:
    drawn = draw([slot(0, 0, 0xA0000), slot(1, 0xA0000, 0x20000, 2), slot(2, 0x100000, 1 << 30)]).plain
    assert drawn == (
        "              0x0 ┌──────────────────────────────────┐\n"
        "                  │ slot 0  640 KiB                  │\n"
        "          0xa0000 ├──────────────────────────────────┤\n"
        "                  │ slot 1  128 KiB  ro              │\n"
        "          0xc0000 └──────────────────────────────────┘\n"
        "                    hole, 256 KiB\n"
        "         0x100000 ┌──────────────────────────────────┐\n"
        "                  │ slot 2  1 GiB                    │\n"
        "                  │                                  │\n"
        "                  │                                  │\n"
        "       0x40100000 └──────────────────────────────────┘"
    )


def test_more_slots_than_fit_are_drawn_in_runs() -> None:
    many = [slot(number, number << 12, 1 << 12) for number in range(MOST_BOXES + 1)]
    assert "41 slots from 0 on  164 KiB" in draw(many).plain
    assert draw(many[:-1]).plain.count("slot ") == MOST_BOXES
