"""Draws of dirty logs: their mode, and reading and clearing them."""

from __future__ import annotations

from tests.conformance.draws.aim import Aim
from tests.conformance.recording import Operation
from tests.conformance.replay import U64

_MOST_WORDS = 8
"""Words that a bitmap names; those behind them are zeroes."""


def mode(aim: Aim) -> list[Operation]:
    """Draw KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 on, on with logs set from the start, off, or with bits that it lacks."""
    wrong = (2, 4, 5, 1 << 32, 1 << 63, U64)
    arg = aim.rng.choice(wrong if aim.rng.random() < 0.2 else aim.askable.log_modes)
    return [{"op": "enable_cap", "cap": "KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2", "arg": arg}]


def get(aim: Aim) -> list[Operation]:
    """Draw a reading."""
    return [{"op": "get_dirty_log", "slot": aim.log_id()}]


def clear(aim: Aim) -> list[Operation]:
    """Draw a legal clearing: all of a log, or a part from a word on."""
    slot_id, npages = _some_log(aim)
    first = aim.rng.randrange(0, npages + 1, 64)
    left = npages - first
    return [_clearing(aim, slot_id, first, aim.rng.choice((left, left, left // 64 * 64, min(64, left))))]


def clear_edge(aim: Aim) -> list[Operation]:
    """Draw a clearing with odd ends: beside words, beyond the slot, empty."""
    slot_id, npages = _some_log(aim)
    words = npages // 64 * 64
    first = aim.rng.choice((0, 0, 64, words, words + 64, npages, 1, 32, 63, 1 << 31, 1 << 32, 1 << 63, U64 & -64))
    left = max(npages - first, 0)
    odd = (0, left, left + 1, left + 64, left - 1, left // 2, 1, 63, 65, npages + 1, (1 << 32) - 1, (1 << 32) - 64)
    return [_clearing(aim, slot_id, first, max(aim.rng.choice(odd), 0))]


def _some_log(aim: Aim) -> tuple[int, int]:
    slot_id = aim.log_id()
    slot = aim.table.slots.get(slot_id)
    return slot_id, slot.npages if slot is not None else 64


def _clearing(aim: Aim, slot_id: int, first: int, pages: int) -> Operation:
    words = min(pages + 63 >> 6, _MOST_WORDS) or 1
    bits = aim.rng.choice((b"\xff" * 8 * words, aim.rng.randbytes(8 * words), bytes(8 * words)))
    call = {"op": "clear_dirty_log", "slot": slot_id, "first_page": first, "num_pages": pages}
    return call | {"bitmap": bits.hex()}
