"""Findings as one self-contained page: it needs no network, no script to be read, and shows nothing as markup.

A summary, and for each VM its time line by vCPU, its guest-physical space over time, a table of its updates and each
one up close, in words too. The page forbids itself every outside resource.
"""

import xml.etree.ElementTree as ET  # only written, never parsed
from collections.abc import Sequence
from importlib import resources

from .audit import VmFindings
from .document import summary
from .drawing import element, hatches, html
from .pictures import close_up, describe, explain, kind, memory_map, time_line
from .recording import Audited
from .text import chosen, duration, notes, plural, size, took, vm_notes, who
from .updates import Update

MOST_CLOSE_UPS = 450
"""How many updates a page shows up close; more, and a browser grows slow. Exposed ones come first."""

MOST_VMS = 12
"""How many VMs a page shows: those with the most exposed updates, then those with the most that need a hold."""

_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
)

_LEGEND = (
    ("run", "inside KVM_RUN"),
    ("memory", "memory"),
    ("readonly", "read-only memory"),
    ("missing exposed", "missing, exposed"),
    ("missing", "missing, nobody inside"),
    ("delete", "slot deleted"),
    ("create", "slot made or changed"),
)


def page(audits: Sequence[Audited]) -> str:
    """Give the page's text."""
    data = resources.files("vmmd_client") / "data"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", "Memory map updates: audit"),
        _verbatim("style", (data / "audit.css").read_text(encoding="utf-8")),
    )
    body = element("body", hatches(), _summary(audits))
    main = element("main", id="main")
    body.append(main)
    vms = [(audited, found) for audited in audits for found in audited.findings.vms]
    ranked = sorted(vms, key=lambda vm: (-vm[1].exposed, -vm[1].needs_hold))[:MOST_VMS]
    shown = {id(found) for _, found in ranked}
    for number, (audited, found) in enumerate(vm for vm in vms if id(vm[1]) in shown):
        main.append(_vm(audited, found, f"vm{number}", MOST_CLOSE_UPS // len(ranked)))
    if len(ranked) < len(vms):
        left_out = plural(len(vms) - len(ranked), "other VM")
        main.append(element("p", f"{left_out} with less to show are left out; --json has every one.", class_="note"))
    body.append(_verbatim("script", (data / "audit.js").read_text(encoding="utf-8")))
    return html(element("html", head, body, lang="en"))


def _verbatim(name: str, text: str) -> ET.Element:
    """Make a style or script of a file of ours: the serializer leaves the text of these two alone."""
    own = ET.Element(name)
    own.text = text
    return own


def _summary(audits: Sequence[Audited]) -> ET.Element:
    total = summary(audits)
    exposed = total["exposed"]
    verdict = f"{exposed:,} of {plural(total['updates'], 'memory map update')} exposed"
    if not exposed:
        verdict = f"No update exposed, of {total['updates']:,}"
        if total["doubtful"]:
            verdict = f"No update seen to be exposed, of {total['updates']:,}, and not all is known"
    facts = element(
        "dl",
        *_fact("updates", f"{total['updates']:,}"),
        *_fact("need a hold", f"{total['needs_hold']:,}"),
        *_fact("exposed", f"{exposed:,}"),
        *_fact("longest hole", duration(total["longest_hole_us"])),
        *_fact("unread lines", f"{total['unread_lines']:,}"),
        class_="facts",
    )
    header = element(
        "header",
        element("h1", verdict, class_="bad" if exposed else "unsure" if total["doubtful"] else "good"),
        element(
            "p",
            "An update is exposed when it deletes memory and adds some at the same place while another vCPU is inside "
            "KVM_RUN: what that vCPU touches meanwhile is a stray MMIO exit, a lost store or a failed fetch.",
        ),
        facts,
    )
    for audited in audits:
        for note in notes(audited):
            header.append(element("p", f"{audited.name}: {note}", class_="note"))
    if any(not audited.findings.has_tracepoints for audited in audits):
        header.append(
            element(
                "p",
                "These recordings do not tell guest mode from sleep: a vCPU inside KVM_RUN may have been asleep there.",
                class_="note",
            )
        )
    keys = [element("li", element("span", class_=f"swatch {name}"), f" {text}") for name, text in _LEGEND]
    header.append(element("ul", *keys, class_="legend", aria_label="Legend"))
    return header


def _fact(name: str, value: str) -> tuple[ET.Element]:
    return (element("div", element("dt", name), element("dd", value)),)


def _vm(audited: Audited, found: VmFindings, anchor: str, close_ups: int) -> ET.Element:
    section = element("section", element("h2", f"{audited.name}: VM (fd {found.vm.fd})"), id=anchor)
    section.set("class", "vm")
    for note in vm_notes(found):
        section.append(element("p", note, class_="note"))
    if not found.updates:
        section.append(element("p", "No slot call was recorded."))
        return section
    section.append(element("h3", "vCPUs over time"))
    section.append(element("div", time_line(found, anchor), class_="scroll", tabindex=0))
    drawn = memory_map(found, anchor)
    if drawn is not None:
        section.append(element("h3", "Guest-physical space, call by call"))
        section.append(element("div", drawn[0], class_="scroll", tabindex=0))
        for note in drawn[1]:
            section.append(element("p", note, class_="note"))
    rows = chosen(found, every=False, most=close_ups)
    section.append(element("h3", "Updates"))
    section.append(_filter(found))
    section.append(element("div", _table(found, rows, anchor), class_="scroll tall", tabindex=0))
    if len(rows) < len(found.updates):
        left_out = plural(len(found.updates) - len(rows), "update")
        section.append(
            element("p", f"{left_out} that matter least are not shown here; --json has every one.", class_="note")
        )
    section.append(element("h3", "Up close"))
    opened = min(rows, key=lambda row: (not row[1].exposed, not row[1].needs_hold, row[0]))[0]
    for number, update in rows:
        section.append(_close_up(update, number, anchor, is_open=number == opened))
    return section


def _filter(found: VmFindings) -> ET.Element:
    choices = (
        ("all", f"all ({len(found.updates):,})"),
        ("hold", f"need a hold ({found.needs_hold:,})"),
        ("exposed", f"exposed ({found.exposed:,})"),
    )
    buttons = [
        element("button", text, type="button", data_show=name, aria_pressed="true" if name == "all" else "false")
        for name, text in choices
    ]
    return element("p", "Show: ", *buttons, class_="filter")


def _table(found: VmFindings, rows: Sequence[tuple[int, Update]], anchor: str) -> ET.Element:
    names = ("update", "at (s)", "thread", "calls", "took", "needs hold", "longest hole", "inside KVM_RUN", "verdict")
    head = element("thead", element("tr", *(element("th", name, scope="col") for name in names)))
    body = element("tbody")
    begin_us = found.updates[0].begin_us
    for number, update in rows:
        longest = max(update.holes, key=lambda hole: hole.open_us, default=None)
        link = element("a", str(number), href=f"#{anchor}-update-{number}")
        cells = (
            f"{(update.begin_us - begin_us) / 1e6:.6f}",
            str(update.thread),
            f"{update.calls} (-{update.deletes} +{update.creates})",
            took(update),
            "yes" if update.needs_hold else "no",
            ""
            if longest is None
            else f"{duration(longest.open_us)}, {size(longest.size)} at {longest.guest_phys_addr:#x}",
            who(update),
            "exposed" if update.exposed else "",
        )
        row = element("tr", element("th", link, scope="row"), *(element("td", cell) for cell in cells))
        row.set("data-kind", kind(update))
        body.append(row)
    return element("table", element("caption", "Memory map updates", class_="unseen"), head, body)


def _close_up(update: Update, number: int, anchor: str, *, is_open: bool) -> ET.Element:
    out = element(
        "details",
        element("summary", describe(update, number), class_=f"{kind(update)}-text"),
        id=f"{anchor}-update-{number}",
        data_kind=kind(update),
        open="" if is_open else None,
    )
    if not update.changes:
        out.append(element("p", "The calls of this update are not kept: the recording is too long.", class_="note"))
        return out
    out.append(element("div", close_up(update, number), class_="scroll", tabindex=0))
    steps = element("ol")
    for step in update.changes:
        after_us = step.call.begin_us - update.begin_us
        steps.append(element("li", f"after {duration(after_us)}: {explain(step)} (line {step.call.line})"))
    out.append(steps)
    return out
