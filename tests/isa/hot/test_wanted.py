"""What is translated next: what guests met most often, and each once."""

from __future__ import annotations

import threading
from collections import Counter

from vmmd.isa.context import SAMPLE_BACKWARD, SAMPLE_EXIT
from vmmd.isa.hot.wanted import Wanted, Wish


def wish(pc: int) -> Wish:
    return Wish(pc, pc, bytes(4), is_exit=True)


def exits(**times: int) -> Counter[int]:
    """Return samples of exits by address, written as a name: `at_1000=3`."""
    return Counter({int(name.removeprefix("at_"), 16) | SAMPLE_EXIT: count for name, count in times.items()})


def test_an_address_is_hot_once_it_was_met_so_often() -> None:
    wanted = Wanted(hot=4)
    assert wanted.count(exits(at_1000=3)) == []
    assert wanted.count(Counter({0x1000 | SAMPLE_BACKWARD: 1})) == [0x1000 | SAMPLE_BACKWARD]


def test_what_was_asked_for_is_not_hot_again_for_long() -> None:
    wanted = Wanted(hot=4)
    assert wanted.count(exits(at_1000=4))
    assert wanted.count(exits(at_1000=200)) == []
    assert wanted.count(exits(at_1000=60))


def test_what_was_met_most_while_it_waited_is_taken_first() -> None:
    wanted = Wanted(hot=1)
    for pc in (0x1000, 0x2000, 0x3000):
        wanted.put(wish(pc))
    assert wanted.count(exits(at_2000=2, at_3000=9)) == []
    taken = [wanted.take() for _ in range(3)]
    assert taken == [wish(0x3000), wish(0x2000), wish(0x1000)]


def test_a_newer_wish_for_an_address_takes_the_place_of_the_older() -> None:
    wanted = Wanted(hot=1)
    wanted.put(wish(0x1000))
    newer = Wish(0x1000, 0x1000, b"else", is_exit=False)
    wanted.put(newer)
    wanted.put(wish(0x2000))
    assert {wanted.take(), wanted.take()} == {newer, wish(0x2000)}


def test_the_line_is_bounded_and_what_found_no_place_is_hot_still() -> None:
    wanted = Wanted(hot=1)
    for pc in range(0, 4096, 4):
        for sample in wanted.count(Counter({pc | SAMPLE_EXIT: 1})):
            wanted.put(wish(sample & ~3))
    waiting = 0
    while wanted.count(Counter({0x2000 | SAMPLE_EXIT: 1})) == []:
        assert wanted.take() is not None
        waiting += 1
    assert waiting == 1


def test_a_closed_line_gives_nothing_and_lets_go_of_who_waits() -> None:
    wanted = Wanted(hot=1)
    taken: list[Wish | None] = []
    waiter = threading.Thread(target=lambda: taken.append(wanted.take()))
    waiter.start()
    wanted.close()
    waiter.join(60)
    assert taken == [None]
    wanted.put(wish(0x1000))
    assert wanted.take() is None
