"""Findings as one JSON document, for machines.

64-bit quantities are "0x…" strings, as everywhere on vmmd's wire; times are seconds of the recording's own clock, and
durations whole microseconds. The document is written piece by piece: a long recording's is never in memory as a whole.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from .audit import VmFindings
from .recording import Audited
from .updates import Update


def seconds(at_us: int) -> float:
    """Give a time in seconds."""
    return at_us / 1_000_000


def summary(audits: Iterable[Audited]) -> dict[str, Any]:
    """Sum up what all recordings hold."""
    audits = list(audits)
    found = [found for audited in audits for found in audited.findings.vms]
    return {
        "updates": sum(len(one.updates) for one in found),
        "needs_hold": sum(one.needs_hold for one in found),
        "exposed": sum(one.exposed for one in found),
        "longest_hole_us": max((one.longest_hole_us for one in found), default=0),
        "unread_lines": sum(audited.unread_lines for audited in audits),
        "guesses": sum(audited.findings.guesses for audited in audits),
        "doubtful": any(audited.is_doubtful for audited in audits),
    }


def update(one: Update) -> dict[str, Any]:
    """Give one update."""
    return {
        "thread": one.thread,
        "begin": seconds(one.begin_us),
        "end": seconds(one.end_us),
        "line": one.line,
        "calls": one.calls,
        "deletes": one.deletes,
        "creates": one.creates,
        "needs_hold": one.needs_hold,
        "holes": [
            {
                "address_space": hole.address_space,
                "guest_phys_addr": f"{hole.guest_phys_addr:#x}",
                "size": f"{hole.size:#x}",
                "open_us": hole.open_us,
            }
            for hole in one.holes
        ],
        "vcpus_inside": list(one.vcpus_inside),
        "in_guest_mode": None if one.in_guest_mode is None else list(one.in_guest_mode),
        "mode_unknown": list(one.mode_unknown),
        "met_us": one.met_us,
        "exposed": one.exposed,
        "map_known": one.map_known,
    }


def vm(audited: Audited, found: VmFindings) -> dict[str, Any]:
    """Give what is to be said of one VM beside its updates."""
    unknown_since_us = found.vm.unknown_since_us
    return {
        "trace": audited.name,
        "vm_fd": found.vm.fd,
        "vcpu_threads": sorted(found.lanes),
        "vcpu_ids": {str(thread): found.vcpu_ids[thread] for thread in sorted(found.vcpu_ids)},
        "map_unknown_since": None if unknown_since_us is None else seconds(unknown_since_us),
        "unseen_calls": found.vm.unseen_calls,
        "unseen_slots": found.vm.unseen_slots,
        "log_calls": found.vm.log_calls,
    }


def pieces(audits: Sequence[Audited]) -> Iterator[str]:
    """Give the document's text, an update at a time."""
    yield '{"vms": ['
    between = ""
    for audited in audits:
        for found in audited.findings.vms:
            yield between + json.dumps(vm(audited, found))[:-1] + ', "updates": ['
            for number, one in enumerate(found.updates):
                yield (", " if number else "") + json.dumps(update(one))
            yield "]}"
            between = ", "
    yield f'], "summary": {json.dumps(summary(audits))}}}\n'
