"""Findings for people at a terminal: what it comes to in a few lines, then a table of the updates that matter.

It says what a recording cannot tell as plainly as what it does.
"""

from collections.abc import Iterable, Iterator, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from .audit import VmFindings
from .recording import Audited
from .updates import Hole, Update

MOST_ROWS = 25
"""How many updates the table shows, unless all are asked for."""

MOST_TABLES = 12
"""Of how many VMs of a recording the updates are listed, unless all are asked for; the others have their headline."""


_NO_HOLE = "  Needs a hold and shows no hole: memory moved within one call, was new, or was away again at the end."


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
    parts += [Text(note, style="yellow") for note in notes(audited)]
    for which, found in enumerate(audited.findings.vms):
        parts += [headline(audited, found), *(Text(f"  {note}", style="dim") for note in vm_notes(found))]
        rows = chosen(found, every=every)
        if rows and (every or which < MOST_TABLES):
            parts.append(table(found, rows))
            if any(update.needs_hold and not update.holes for _, update in rows):
                parts.append(Text(_NO_HOLE, style="dim"))
            left_out = len(found.updates) - len(rows)
            if left_out:
                parts.append(
                    Text(f"  {plural(left_out, 'other update')} not shown (--all shows every one)", style="dim")
                )
    if not audited.findings.vms:
        parts.append(Text("no VM: nobody made a slot or ran a vCPU"))
    return Group(*parts, Text())


def headline(audited: Audited, found: VmFindings) -> Text:
    """Say in two lines what a VM's updates come to."""
    out = Text(f"VM (fd {found.vm.fd}): {plural(len(found.updates), 'memory map update')}, ")
    out.append(
        f"{found.needs_hold:,} of them add{'s' if found.needs_hold == 1 else ''} memory where they delete some; "
    )
    if not found.exposed and found.vm.unseen_calls:
        out.append("whether one was exposed is not known", style="bold yellow")
        return out.append(f": the contents of {plural(found.vm.unseen_calls, 'slot call')} are not in the recording")
    if not found.exposed and audited.is_doubtful:
        return out.append("none was seen to be exposed, and not all could be read", style="bold yellow")
    if not found.exposed:
        return out.append("none was exposed", style="bold green")
    out.append(f"{found.exposed:,} {'was' if found.exposed == 1 else 'were'} exposed", style="bold red")
    met_us = max(update.met_us for update in found.updates if update.exposed)
    if met_us:
        out.append(f"\n  Memory was missing for up to {duration(met_us)} while another vCPU was inside KVM_RUN. ")
    else:
        out.append(
            "\n  Another vCPU was inside KVM_RUN during an update, but in none while a range is known to be missing. "
        )
    if not audited.findings.has_tracepoints:
        return out.append("It may have been asleep there: these recordings do not tell guest mode from sleep.")
    exposed = [update for update in found.updates if update.exposed]
    ran = sum(bool(update.in_guest_mode) for update in exposed)
    out.append(f"In {plural(ran, 'such update')} one was in guest mode.")
    unknown = sum(bool(update.mode_unknown) for update in exposed)
    if unknown:
        out.append(f" In {unknown:,} it is not known of some: no kvm_entry or kvm_exit of theirs had been recorded.")
    return out


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
            f"{plural(audited.unread_lines, 'line')} of {audited.lines:,} name a slot call or KVM_RUN, or may have, "
            "and could not be read: an update may be missing or incomplete"
        )
    if audited.has_untimed_runs:
        yield (
            "several threads, and no call of any is shown unfinished: if these are merged files of strace -ff, how "
            "long each KVM_RUN lasted is not in them and a vCPU inside is not seen; record with -T, or -f into one file"
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
        if not audited.findings.has_tracepoints:
            yield "the tracer's file holds no kvm_entry and no kvm_exit: guest mode is not told from sleep"


def chosen(found: VmFindings, *, every: bool, most: int = MOST_ROWS) -> list[tuple[int, Update]]:
    """Choose the updates to show, with their numbers: exposed ones, then those that need a hold; long holes first."""
    numbered = list(enumerate(found.updates, 1))
    if every or len(numbered) <= most:
        return numbered
    ranked = sorted(
        numbered, key=lambda row: (not row[1].exposed, not row[1].needs_hold, -longest_us(row[1].holes), row[0])
    )
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
    return " ".join(f"{thread} ({mode(update, thread)})" for thread in update.vcpus_inside)


def mode(update: Update, thread: int) -> str:
    """Say of a thread that was inside what tracepoints tell of its mode."""
    if thread in (update.in_guest_mode or ()):
        return "guest mode"
    return "mode unknown" if thread in update.mode_unknown else "not in guest mode"


def longest_us(holes: Iterable[Hole]) -> int:
    """Give how long the longest hole stood open; 0 where there is none."""
    return max((hole.open_us for hole in holes), default=0)


def _longest(update: Update) -> str:
    if not update.holes:
        return ""
    hole = max(update.holes, key=lambda hole: hole.open_us)
    return f"{duration(hole.open_us)}, {size(hole.size)} at {hole.guest_phys_addr:#x}"
