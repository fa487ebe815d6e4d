"""Findings for people at a terminal: what it comes to in a few lines, then a table of the updates that matter.

It says what a recording cannot tell as plainly as what it does.
"""

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from .audit import VmFindings
from .recording import Audited
from .updates import Update

MOST_ROWS = 25
"""How many updates the table shows, unless all are asked for."""

MOST_TABLES = 12
"""Of how many VMs of a recording the updates are listed, unless all are asked for; the others have their headline."""


def duration(microseconds: int) -> str:
    """Give a time as people read it: 1.69 ms, 350 µs."""
    if microseconds < 1_000:
        return f"{microseconds} µs"
    return f"{microseconds / 1e3:,.2f} ms" if microseconds < 1_000_000 else f"{microseconds / 1e6:,.2f} s"


def size(size_bytes: int) -> str:
    """Give a size in the largest unit that divides it."""
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if size_bytes and not size_bytes % unit:
            return f"{size_bytes // unit} {name}"
    return f"{size_bytes} B"


def printable(text: str) -> str:
    """Give a name that came from outside without what would steer a terminal."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def plural(count: int, noun: str) -> str:
    """Give a count with its noun."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def report(audited: Audited, *, every: bool = False) -> RenderableType:
    """Give the whole report of one recording.

    Args:
        audited: the recording's findings.
        every: whether the table shows all updates, and not only the first that matter.
    """
    parts: list[RenderableType] = [Text(printable(audited.name), style="bold")]
    for which, found in enumerate(audited.findings.vms):
        parts += [headline(audited, found), *(Text(f"  {note}", style="dim") for note in vm_notes(found))]
        rows = chosen(found, every=every)
        if rows and (every or which < MOST_TABLES):
            parts.append(table(found, rows))
            left_out = len(found.updates) - len(rows)
            if left_out:
                parts.append(
                    Text(f"  {plural(left_out, 'other update')} not shown (--all shows every one)", style="dim")
                )
    if not audited.findings.vms:
        parts.append(Text("no VM: nobody made a slot or ran a vCPU"))
    parts += [Text(note, style="yellow") for note in notes(audited)]
    return Group(*parts, Text())


def headline(audited: Audited, found: VmFindings) -> Text:
    """Say in two lines what a VM's updates come to."""
    out = Text(f"VM (fd {found.vm.fd}): {plural(len(found.updates), 'memory map update')}, ")
    out.append(
        f"{found.needs_hold:,} of them add{'s' if found.needs_hold == 1 else ''} memory where they delete some; "
    )
    if not found.exposed:
        return out.append("none was exposed", style="bold green")
    out.append(f"{found.exposed:,} {'was' if found.exposed == 1 else 'were'} exposed", style="bold red")
    longest_us = max((hole.open_us for update in found.updates if update.exposed for hole in update.holes), default=0)
    out.append(f"\n  Memory was missing for up to {duration(longest_us)} while another vCPU was inside KVM_RUN. ")
    if not audited.findings.has_tracepoints:
        return out.append("It may have been asleep there: these recordings do not tell guest mode from sleep.")
    ran = sum(update.exposed and bool(update.in_guest_mode) for update in found.updates)
    return out.append(f"In {plural(ran, 'such update')} one was in guest mode.")


def vm_notes(found: VmFindings) -> Iterator[str]:
    """Say what is not known of a VM."""
    vm = found.vm
    if vm.unseen_calls:
        yield (
            f"{plural(vm.unseen_calls, 'slot call')} without contents: from the first one on, at "
            f"{(vm.unknown_since_us or 0) / 1e6:.6f}, this VM's map is unknown"
        )
    if vm.unseen_slots:
        yield f"{plural(vm.unseen_slots, 'slot')} deleted that nobody was seen to make: the recording began later"
    if vm.log_calls:
        yield f"{plural(vm.log_calls, 'call')} about dirty logs: seen, without their contents"


def notes(audited: Audited) -> Iterator[str]:
    """Say what could not be read of a recording."""
    if audited.unread_lines:
        yield (
            f"{plural(audited.unread_lines, 'line')} of {audited.lines:,} name a slot call or KVM_RUN and could not be "
            "read: an update may be missing or incomplete"
        )
    if audited.cut_off:
        yield "the gzip stream ends before its end; what came before was read"
    if audited.findings.guesses:
        yield (
            "several processes used the same file descriptors, and for "
            f"{plural(audited.findings.guesses, 'thread')} the VM was guessed: "
            "record clone, clone3, fork, vfork and close as well"
        )
    if audited.matched is not None:
        yield (
            f"the tracer's clock was matched to the other recording's at {plural(audited.matched.calls, 'slot call')}, "
            f"to within {duration(audited.matched.spread_us)}"
        )


def chosen(found: VmFindings, *, every: bool, most: int = MOST_ROWS) -> list[tuple[int, Update]]:
    """Choose the updates to show, with their numbers: exposed ones first, then those that need a hold."""
    numbered = list(enumerate(found.updates, 1))
    if every or len(numbered) <= most:
        return numbered
    ranked = sorted(numbered, key=lambda row: (not row[1].exposed, not row[1].needs_hold, row[0]))
    return sorted(ranked[:most], key=lambda row: row[0])


def table(found: VmFindings, rows: Sequence[tuple[int, Update]]) -> Table:
    """Give a table of updates."""
    begin_us = found.updates[0].begin_us
    out = Table(pad_edge=False)
    out.add_column("#", justify="right")
    out.add_column("at (s)", justify="right")
    out.add_column("thread", justify="right")
    out.add_column("calls", justify="right")
    out.add_column("took", justify="right")
    out.add_column("needs hold")
    out.add_column("longest hole")
    out.add_column("inside KVM_RUN")
    out.add_column("")
    for number, update in rows:
        out.add_row(
            str(number),
            f"{(update.begin_us - begin_us) / 1e6:.6f}",
            str(update.thread),
            f"{update.calls} (-{update.deletes} +{update.creates})",
            took(update),
            "yes" if update.needs_hold else "no",
            _longest(update),
            who(update),
            Text("exposed", style="bold red") if update.exposed else Text(),
        )
    return out


def took(update: Update) -> str:
    """Say how long an update took; nothing where it is one call whose end the recording does not tell."""
    return duration(update.end_us - update.begin_us) if update.end_us > update.begin_us else ""


def who(update: Update) -> str:
    """Name the threads that were inside KVM_RUN, and those of them that were in guest mode where that is known."""
    if update.in_guest_mode is None:
        return " ".join(map(str, update.vcpus_inside))
    return " ".join(
        f"{thread} ({'guest mode' if thread in update.in_guest_mode else 'not in guest mode'})"
        for thread in update.vcpus_inside
    )


def _longest(update: Update) -> str:
    if not update.holes:
        return ""
    hole = max(update.holes, key=lambda hole: hole.open_us)
    return f"{duration(hole.open_us)}, {size(hole.size)} at {hole.guest_phys_addr:#x}"
