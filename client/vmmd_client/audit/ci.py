"""Findings for continuous integration: JUnit's XML, and SARIF 2.1.0 for code scanning.

In JUnit an update is a test case and an exposed one a failure; in SARIF an exposed update is a result at the line of
the recording on which it began. What could not be read is a failure of its own, or a result: a gate must not pass for
want of knowledge without somebody seeing it.
"""

import json
import xml.etree.ElementTree as ET  # only written, never parsed
from collections.abc import Iterator, Sequence
from pathlib import PurePath
from typing import Any

from .recording import Audited
from .text import duration, notes, plural, printable, size, vm_notes
from .updates import Update

SARIF_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"

_RULES = {
    "exposed-update": (
        "A memory map update left a window open",
        "Memory was deleted and added again at the same place while another vCPU was inside KVM_RUN. What that vCPU "
        "touched meanwhile was a stray MMIO exit, a lost store, or a failed instruction fetch. Keep vCPUs out of "
        "KVM_RUN from the first delete to the last create.",
    ),
    "doubtful-recording": (
        "A recording could not be read as a whole",
        "Lines that name a slot call or KVM_RUN could not be read, or a call's contents are not in the recording, so "
        "an exposed update may be missing.",
    ),
}


def explain(update: Update) -> str:
    """Say in one sentence what was exposed."""
    longest = max(update.holes, key=lambda hole: hole.open_us, default=None)
    missing = (
        "memory moved"
        if longest is None
        else f"{size(longest.size)} at {longest.guest_phys_addr:#x} was missing for {duration(longest.open_us)}"
    )
    inside = plural(len(update.vcpus_inside), "other vCPU thread")
    return (
        f"{missing} in an update of {plural(update.calls, 'slot call')} by thread {update.thread}, with {inside} "
        f"inside KVM_RUN ({', '.join(map(str, update.vcpus_inside))})"
    )


def _doubts(audited: Audited) -> list[str]:
    if not audited.is_doubtful:
        return []
    return [*notes(audited), *(note for found in audited.findings.vms for note in vm_notes(found))]


def junit(audits: Sequence[Audited]) -> str:
    """Give JUnit's XML."""
    root = ET.Element("testsuites", name="vmmctl audit")
    for audited in audits:
        for found in audited.findings.vms:
            name = f"{_xml(audited.name)} VM fd {found.vm.fd}"
            suite = ET.SubElement(
                root, "testsuite", name=name, tests=str(len(found.updates)), failures=str(found.exposed), errors="0"
            )
            for number, update in enumerate(found.updates, 1):
                case = ET.SubElement(
                    suite,
                    "testcase",
                    classname=name,
                    name=f"update {number} at line {update.line}",
                    time=f"{(update.end_us - update.begin_us) / 1e6:.6f}",
                )
                if update.exposed:
                    ET.SubElement(case, "failure", type="exposed", message=explain(update))
        for doubt in _doubts(audited):
            suite = ET.SubElement(root, "testsuite", name=_xml(audited.name), tests="1", failures="0", errors="1")
            case = ET.SubElement(
                suite, "testcase", classname=_xml(audited.name), name="the recording is read as a whole"
            )
            ET.SubElement(case, "error", type="doubtful", message=doubt)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _xml(name: str) -> str:
    """Give a name with nothing in it that XML cannot hold."""
    return printable(name).encode("utf-8", errors="replace").decode("utf-8")


def sarif(audits: Sequence[Audited]) -> str:
    """Give a SARIF 2.1.0 log."""
    rules = [
        {"id": name, "shortDescription": {"text": short}, "fullDescription": {"text": full}}
        for name, (short, full) in _RULES.items()
    ]
    run: dict[str, Any] = {
        "tool": {"driver": {"name": "vmmctl audit", "rules": rules}},
        "columnKind": "unicodeCodePoints",
        "results": [result for audited in audits for result in _results(audited)],
    }
    return json.dumps({"$schema": SARIF_SCHEMA, "version": "2.1.0", "runs": [run]}, indent=1) + "\n"


def _results(audited: Audited) -> Iterator[dict[str, Any]]:
    for found in audited.findings.vms:
        for update in found.updates:
            if update.exposed:
                yield _result(audited, "exposed-update", "error", explain(update), update.line)
    for doubt in _doubts(audited):
        yield _result(audited, "doubtful-recording", "warning", doubt, 1)


def _result(audited: Audited, rule: str, level: str, text: str, line: int) -> dict[str, Any]:
    path = PurePath(printable(audited.name))
    return {
        "ruleId": rule,
        "ruleIndex": list(_RULES).index(rule),
        "level": level,
        "message": {"text": text},
        "locations": [
            {
                "physicalLocation": {
                    "artifactLocation": {"uri": path.as_uri() if path.is_absolute() else _relative_uri(path)},
                    "region": {"startLine": max(1, line)},
                }
            }
        ],
    }


def _relative_uri(path: PurePath) -> str:
    """Give a relative path as a relative URI, with what a URI cannot hold escaped."""
    return (PurePath("/") / path).as_uri().removeprefix("file:///")
