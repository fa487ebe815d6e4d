"""How much work an audit is, counted and not timed: it grows with the recording and not with its square."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from types import FrameType

from tests.audit.lines import findings, line, run, slot


def steps(lines: Iterable[str]) -> int:
    """Count the lines of the audit's own code that are gone through."""
    count = 0

    def trace(frame: FrameType, event: str, _argument: object) -> Callable[..., object] | None:
        nonlocal count
        if "vmmd_client/audit" not in frame.f_code.co_filename:
            return None
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        findings(lines)
    finally:
        sys.settrace(before)
    return count


def grows_with_its_length(make: Callable[[int], list[str]], few: int = 60) -> bool:
    """Tell whether four times as much takes at most six times the steps; a square would take sixteen."""
    return steps(make(4 * few)) < 6 * steps(make(few))


MADE = [slot(0.0, 0, 0, 0x100000)]


def a_missed_range(count: int) -> list[str]:
    calls = [slot(1.006 + n * 0.006, 2, 0x8000_0000 + 0x2000 * n, 0 if n % 2 else 0x1000) for n in range(count)]
    return [*MADE, slot(1.0, 0, 0, 0), *calls]


def one_long_update(count: int) -> list[str]:
    calls = [[slot(1 + n * 4e-6, 0, 0, 0), slot(1 + n * 4e-6, 0, 0, 0x1000_0000 - n * 0x1000)] for n in range(count)]
    return [*MADE, *(call for pair in calls for call in pair)]


def many_threads(count: int) -> list[str]:
    calls = [slot(1 + n * 1e-6, n + 10, 0x1_0000_0000 + n * 0x1000, 0x1000, thread=1000 + n) for n in range(count)]
    return [*MADE, *calls, *(run(1.03, thread=900) for _ in range(count))]


def many_processes(count: int) -> list[str]:
    lines = []
    for n in range(count):
        own, at = 1000 + n, n * 1e-4
        lines += [
            line(at, "ioctl(3, KVM_CREATE_VM, 0) = 8", thread=own),
            line(at, "ioctl(8, KVM_CREATE_VCPU, 0) = 9", thread=own),
            slot(at, 0, 0, 4096, thread=own),
            slot(at, 0, 0, 0, thread=own),
            run(at, thread=own),
        ]
    return lines


def test_a_range_that_stays_missed_over_many_calls_is_not_looked_for_among_all_of_them() -> None:
    assert grows_with_its_length(a_missed_range)


def test_an_update_with_a_border_for_each_call_is_not_cut_at_all_of_them() -> None:
    assert grows_with_its_length(one_long_update)


def test_a_run_does_not_ask_every_update_that_may_still_grow() -> None:
    assert grows_with_its_length(many_threads)


def test_a_call_does_not_ask_every_vm_that_has_the_same_number() -> None:
    assert grows_with_its_length(many_processes)
