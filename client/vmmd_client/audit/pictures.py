"""Pictures of findings: a VM's whole recording by vCPU, its guest-physical space over time, and one update up close.

Each is drawn from findings alone, in bounded size: lanes are blurred (`lanes`), the map shows at most `MOST_DRAWN`
updates and `MOST_BANDS` ranges, and says what it leaves out.
"""

import itertools
import xml.etree.ElementTree as ET  # only written, never parsed
from collections.abc import Sequence
from dataclasses import dataclass

from ..slots.memslots import Backing, Memslot, Piece, SlotMap, cut, with_call
from .audit import VmFindings
from .drawing import LABEL_WIDTH, WIDTH, element, label, picture, rect
from .text import duration, mode, plural, size
from .updates import Change, Update

MOST_DRAWN = 500
"""How many updates the map over time shows."""

MOST_BANDS = 48
"""How many ranges of guest-physical space the map over time shows."""

_ROW = 22
_AREA = WIDTH - LABEL_WIDTH


def kind(update: Update) -> str:
    """Give the class of an update: exposed, hold (it needs one), or calm."""
    return "exposed" if update.exposed else "hold" if update.needs_hold else "calm"


def describe(update: Update, number: int) -> str:
    """Name an update in a few words."""
    words = {"exposed": "exposed", "hold": "needs a hold, nobody was inside", "calm": "needs no hold"}
    return f"update {number}: {plural(update.calls, 'slot call')}, {words[kind(update)]}"


def time_line(found: VmFindings, anchor: str) -> ET.Element:
    """Draw when each vCPU thread was inside KVM_RUN, and where the updates are."""
    stays = [stay for lane in found.lanes.values() for stay in lane.stays]
    first = min([stay[0] for stay in stays] + [update.begin_us for update in found.updates])
    last = max([stay[1] for stay in stays] + [update.end_us for update in found.updates])
    scale = _AREA / max(1, last - first)
    marks: list[ET.Element] = [label(0, 15, "updates")]
    for number, update in enumerate(found.updates, 1):
        x = LABEL_WIDTH + (update.begin_us - first) * scale
        width = max(1.5, (update.end_us - update.begin_us) * scale)
        x = min(x, WIDTH - width)
        mark = rect(x, 4 if update.exposed else 8, width, 16 if update.exposed else 8, kind(update))
        mark.append(element("title", describe(update, number)))
        marks.append(element("a", mark, href=f"#{anchor}-update-{number}", tabindex=-1))
    y = _ROW + 4.0
    for thread, lane in sorted(found.lanes.items()):
        vcpu = f": vCPU {found.vcpu_ids[thread]}" if thread in found.vcpu_ids else ""
        marks += [label(0, y + 14, f"thread {thread}{vcpu}"), rect(LABEL_WIDTH, y + 9, _AREA, 1, "rail")]
        for begin, end in lane.stays:
            width = max(0.5, (end - begin) * scale)
            marks.append(rect(min(LABEL_WIDTH + (begin - first) * scale, WIDTH - width), y + 3, width, 13, "run"))
        y += _ROW
    marks += _axis(y, last - first)
    title = (
        f"Time line of {len(found.lanes)} vCPU threads ({len(found.vcpu_ids)} vCPU ids known) over "
        f"{duration(last - first)}: bars are times inside KVM_RUN, marks on top are memory map updates, tall ones "
        "exposed"
    )
    return picture(y + 20, title, *marks)


def _axis(y: float, span_us: int, before_us: int = 0) -> list[ET.Element]:
    """Draw an axis; its times count from a moment that lies so far behind its left end."""
    marks = [rect(LABEL_WIDTH, y, _AREA, 0.6, "rail")]
    for part in range(5):
        x = LABEL_WIDTH + _AREA * part / 4
        anchor = ("start", "middle", "middle", "middle", "end")[part]
        marks += [
            rect(x - 0.3, y, 0.6, 4, "rail"),
            label(x, y + 15, _since(span_us * part // 4 - before_us), "tick", anchor),
        ]
    return marks


def _since(microseconds: int) -> str:
    return duration(microseconds) if microseconds >= 0 else f"-{duration(-microseconds)}"


@dataclass(frozen=True, slots=True)
class _Step:
    """A column of the map: the slots behind one call of an update."""

    number: int
    update: Update
    slots: SlotMap
    is_last: bool


def memory_map(found: VmFindings, anchor: str) -> tuple[ET.Element, list[str]] | None:
    """Draw which ranges had memory after each call; gives the picture and what is left out of it."""
    steps, notes = _steps(found)
    if not steps:
        return None
    bands = cut(step.slots for step in steps)
    shown = bands
    if len(bands) > MOST_BANDS:
        changing = sorted(bands, key=lambda band: -len(set(band.backings)))[:MOST_BANDS]
        shown = sorted(changing, key=lambda band: band.guest_phys_addr)
        notes.append(f"{len(bands) - MOST_BANDS} of {len(bands)} ranges, those that change least, are not drawn")
    column = max(2.0, min(26.0, _AREA / len(steps)))
    width = max(float(WIDTH), LABEL_WIDTH + column * len(steps))
    marks, y = _heads(steps, column, anchor), 24.0
    for band in reversed(shown):
        name = f"{band.guest_phys_addr:#x}  {size(band.size)}"
        marks += [label(0, y + 13, name, "label mono")]
        marks += _band(band, steps, column, y)
        y += 18
    title = (
        f"Map of guest-physical space: {len(shown)} ranges, the highest on top, over the {len(steps)} slot calls of "
        f"{len({step.number for step in steps})} updates in their order; hatched where one is missing within an update"
    )
    return picture(y + 6, title, *marks, width=width), notes


def _steps(found: VmFindings) -> tuple[list[_Step], list[str]]:
    exposed = next((index for index, update in enumerate(found.updates) if update.exposed), 0)
    first = 0 if len(found.updates) <= MOST_DRAWN else max(0, exposed - MOST_DRAWN // 10)
    notes = []
    if len(found.updates) > MOST_DRAWN:
        last = min(len(found.updates), first + MOST_DRAWN)
        notes.append(f"updates {first + 1} to {last} of {len(found.updates)} are drawn")
    slots: SlotMap = {}
    steps: list[_Step] = []
    for index, update in enumerate(found.updates[: first + MOST_DRAWN]):
        done = [step for step in update.changes if step.call.errno is None and step.call.region is not None]
        for place, step in enumerate(done):
            region = step.call.region
            if region is None or region.address_space:
                continue
            slots = with_call(slots, region)
            if index >= first:
                steps.append(_Step(index + 1, update, slots, place == len(done) - 1))
    if any(hole.address_space for update in found.updates for hole in update.holes):
        notes.append("address space 0 alone is drawn")
    return steps, notes


def _heads(steps: Sequence[_Step], column: float, anchor: str) -> list[ET.Element]:
    """Draw a bar over each update's columns, with its number where there is room."""
    marks: list[ET.Element] = []
    x = float(LABEL_WIDTH)
    free = 0.0
    for number, group in itertools.groupby(steps, key=lambda step: step.number):
        own = list(group)
        width = column * len(own)
        bar = rect(x + 0.4, 14, width - 0.8, 5, kind(own[0].update), describe(own[0].update, number))
        marks.append(element("a", bar, href=f"#{anchor}-update-{number}", tabindex=-1))
        if x >= free:
            marks.append(label(x + 1, 10, str(number), "tick"))
            free = x + 9.0 * len(str(number)) + 6
        x += width
    return marks


def _band(band: Piece, steps: Sequence[_Step], column: float, y: float) -> list[ET.Element]:
    states = [_state(backing, band, step) for backing, step in zip(band.backings, steps, strict=True)]
    marks: list[ET.Element] = []
    at = 0
    for state, group in itertools.groupby(states):
        length = len(list(group))
        if state:
            title = f"{band.guest_phys_addr:#x}, {size(band.size)}: {state}, from update {steps[at].number} on"
            marks.append(rect(LABEL_WIDTH + at * column, y, length * column, 16, state, title))
        at += length
    return marks


def _state(backing: Backing | None, band: Piece, step: _Step) -> str:
    if backing is not None:
        return "memory" if backing.is_writable else "readonly"
    inside = any(
        hole.guest_phys_addr <= band.guest_phys_addr < hole.end and not hole.address_space for hole in step.update.holes
    )
    if step.is_last or not inside:
        return ""
    return "missing exposed" if step.update.exposed else "missing"


def close_up(update: Update, number: int) -> ET.Element:
    """Draw one update: its calls, who was inside KVM_RUN, and which ranges were missing for how long."""
    end_us = max([update.end_us, *(hole.end_us for hole in update.holes)])
    margin = max(20, (end_us - update.begin_us) // 8)
    first, last = update.begin_us - margin, end_us + margin
    scale = _AREA / (last - first)

    def x(at_us: int) -> float:
        return LABEL_WIDTH + (min(max(at_us, first), last) - first) * scale

    marks: list[ET.Element] = [label(0, 30, f"thread {update.thread}: calls")]
    free = 0.0
    for step in update.changes:
        begin, end = x(step.call.begin_us), x(step.call.answered_us)
        marks.append(rect(begin, 18, max(2.5, end - begin), 14, _call_class(step), explain(step)))
        if begin >= free:
            marks.append(label(begin, 13, sign(step), "tick"))
            free = begin + 7.0 * len(sign(step)) + 4
    y = 40.0
    for thread in update.vcpus_inside:
        told = "inside" if update.in_guest_mode is None else mode(update, thread)
        marks += [label(0, y + 13, f"thread {thread}: {told}"), rect(LABEL_WIDTH, y + 8, _AREA, 1, "rail")]
        for owner, begin_us, end_us in update.stays:
            if owner == thread:
                title = f"inside KVM_RUN for {duration(end_us - begin_us)}"
                marks.append(rect(x(begin_us), y + 2, max(1.5, x(end_us) - x(begin_us)), 13, "run", title))
        y += _ROW
    for hole in update.holes:
        start, width = x(hole.begin_us), max(2.0, x(hole.end_us) - x(hole.begin_us))
        state = "missing exposed" if update.exposed else "missing"
        marks.append(label(0, y + 13, f"{hole.guest_phys_addr:#x}  {size(hole.size)}", "label mono"))
        marks.append(rect(start, y + 2, width, 13, state, f"missing for {duration(hole.open_us)}"))
        near_end = start + width > WIDTH - 60
        marks.append(
            label(
                start - 4 if near_end else start + width + 4,
                y + 13,
                duration(hole.open_us),
                "tick",
                "end" if near_end else None,
            )
        )
        y += _ROW - 2
    marks += _axis(y + 4, last - first, margin)
    return picture(y + 24, f"Update {number} up close, {duration(last - first)} from left to right", *marks)


def sign(step: Change) -> str:
    """Give the shortest name of a call: -3 deletes slot 3, +3 makes it, ~3 changes it."""
    region = step.call.region
    if region is None:
        return "?"
    mark = (
        "!"
        if step.call.errno
        else "-"
        if not region.memory_size
        else "+"
        if step.removed is None and step.added
        else "~"
    )
    return f"{mark}{region.slot & 0xFFFF}"


def explain(step: Change) -> str:
    """Say what a call was and did."""
    call, region = step.call, step.call.region
    if region is None:
        return "a slot call whose contents are not in the recording"
    what = _what(step, region)
    return f"{what}: refused, {call.errno}" if call.errno else what


def _what(step: Change, region: Memslot) -> str:
    if not region.memory_size:
        place = "" if step.removed is None else f" [{step.removed.guest_phys_addr:#x}, {step.removed.end:#x})"
        return f"delete slot {region.slot}{place}"
    flags = (" read-only" if not region.is_writable else "") + (" logged" if region.is_logged else "")
    verb = "create" if step.removed is None and step.added is not None else "move" if step.added else "set flags of"
    return f"{verb} {region}{flags}"


def _call_class(step: Change) -> str:
    if step.call.errno or step.call.region is None:
        return "refused"
    return "delete" if not step.call.region.memory_size else "create"
