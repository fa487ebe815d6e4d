import json

import pytest
from rich.console import Console

from vmmd_client.replay import report
from vmmd_client.replay.layout import Span
from vmmd_client.replay.replay import Tally
from vmmd_client.replay.timeline import Column, Doing, Picture

PLAIN = Tally(1000, 6000, 321, 45, [900_000, 1_100_000], [], 3_000_000_000, 10_000_000_000)
ATOMIC = Tally(1005, 6030, 0, 0, [], [40_000] * 98 + [90_000, 700_000], 5_000_000_000, 10_000_000_000)


def shown(renderable: object) -> str:
    console = Console(width=140, color_system=None)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


@pytest.mark.parametrize(
    ("share", "value"), [(0.0, 1), (0.01, 1), (0.5, 50), (0.505, 51), (0.99, 99), (0.991, 100), (1.0, 100)]
)
def test_a_percentile_is_the_value_at_the_nearest_rank(share: float, value: int):
    assert report.percentile(range(100, 0, -1), share) == value


def test_a_percentile_of_one_value_is_that_value():
    assert report.percentile([7], 0.99) == 7


def test_the_last_line_is_the_agreed_json_object():
    assert json.loads(report.machine_line(PLAIN, ATOMIC)) == {
        "updates": 1000,
        "plain": {"stray_exits": 321, "wrong_values": 45},
        "atomic": {"stray_exits": 0, "wrong_values": 0, "pause_us_p50": 40.0, "pause_us_p99": 90.0},
        "guest_mips": 400.0,
    }


def test_the_table_shows_both_modes_side_by_side():
    text = shown(report.table(PLAIN, ATOMIC))
    for words in ("1,000", "1,005", "321", "45", "900.0", "1,100.0", "40.0", "90.0", "300.0", "500.0"):
        assert words in text


def test_the_picture_shows_who_ran_was_held_and_fell_through_and_what_was_missing():
    columns = (
        Column("before", 1_000, False, (Doing(5, 0), Doing(0, 0)), (False,)),
        Column("kick", 2_000, True, (Doing(0, 0), Doing(0, 0)), (True,)),
        Column("add 0", 3_000, False, (Doing(9, 12), Doing(3, 0)), (False,)),
    )
    taken = Picture("atomic", (Span(0, 0x1000),), columns)
    lines = shown(report.picture(taken, 120)).splitlines()
    assert [line.split() for line in lines if line.strip()][1:] == [
        ["step", "before", "kick", "add", "0"],
        ["took", "(µs)", "1", "2", "3"],
        ["vCPU", "0", "━━━━━━━", "·······", "▼12"],
        ["vCPU", "1", "·······", "━━━━━━━"],
        ["0x0-0x1000", "░░░░░░░"],
    ]


def test_a_narrow_picture_cuts_its_words_and_never_its_lines():
    columns = (Column("resume", 12_345_000, False, (Doing(1, 0),), ()),) * 11
    lines = shown(report.picture(Picture("atomic", (), columns), 80)).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[1].split() == ["step", *["resu"] * 11]
