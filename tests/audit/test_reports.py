"""What is made of findings: text for people, JSON, JUnit and SARIF for machines."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import jsonschema
import pytest
from rich.console import Console

from tests.audit.lines import RECORDINGS, SHIPPED, UNFINISHED, findings, line, run, slot
from vmmd_client.audit import audit_file, text
from vmmd_client.audit.ci import junit, sarif
from vmmd_client.audit.document import pieces
from vmmd_client.audit.lanes import MOST_STAYS, Lane
from vmmd_client.audit.page import page
from vmmd_client.audit.pictures import close_up, time_line
from vmmd_client.audit.recording import Audited

UPDATE = {
    "type": "object",
    "required": [
        "thread",
        "begin",
        "end",
        "calls",
        "deletes",
        "creates",
        "needs_hold",
        "holes",
        "vcpus_inside",
        "exposed",
    ],
    "properties": {
        **{name: {"type": "integer", "minimum": 0} for name in ("thread", "calls", "deletes", "creates", "line")},
        **{name: {"type": "number"} for name in ("begin", "end")},
        **{name: {"type": "boolean"} for name in ("needs_hold", "exposed", "map_known")},
        "holes": {
            "items": {
                "required": ["guest_phys_addr", "size", "open_us"],
                "properties": {
                    "guest_phys_addr": {"type": "string", "pattern": "^0x[0-9a-f]+$"},
                    "size": {"type": "string", "pattern": "^0x[0-9a-f]+$"},
                    "open_us": {"type": "integer", "minimum": 0},
                },
            }
        },
        "vcpus_inside": {"items": {"type": "integer"}},
    },
}
DOCUMENT = {
    "type": "object",
    "required": ["vms", "summary"],
    "properties": {
        "vms": {
            "items": {
                "required": ["vm_fd", "updates"],
                "properties": {"vm_fd": {"type": "integer"}, "updates": {"items": UPDATE}},
            }
        },
        "summary": {"required": ["updates", "exposed", "longest_hole_us", "unread_lines"]},
    },
}


def document(*audits: Audited) -> dict:
    return json.loads("".join(pieces(audits)))


def audited(*lines: str, name: str = "run.strace") -> Audited:
    found, reader = findings(lines)
    return Audited(name, found, reader.lines, reader.unread_lines, cut_off=False)


def shown(one: Audited, **options: bool) -> str:
    console = Console(width=200, color_system=None)
    with console.capture() as capture:
        console.print(text.report(one, **options))
    return capture.get()


def test_the_json_document_has_the_agreed_form() -> None:
    given = document(*(audit_file(str(path)) for path in (SHIPPED, RECORDINGS / "qemu-7.2-pam-dies.strace.gz")))
    jsonschema.validate(given, DOCUMENT)
    assert [len(vm["updates"]) for vm in given["vms"]] == [11, 9]
    assert {name: given["summary"][name] for name in ("updates", "exposed", "longest_hole_us", "unread_lines")} == {
        "updates": 20,
        "exposed": 3,
        "longest_hole_us": 3159,
        "unread_lines": 0,
    }


def test_the_update_in_which_the_guest_died_is_told_in_full() -> None:
    last = document(audit_file(str(RECORDINGS / "qemu-7.2-pam-dies.strace.gz")))["vms"][0]["updates"][-1]
    assert (last["thread"], last["begin"], last["line"]) == (22355, 1795359964.946153, 303)
    assert (last["calls"], last["deletes"], last["creates"]) == (4, 1, 3)
    assert (last["needs_hold"], last["vcpus_inside"], last["exposed"]) == (True, [22356], True)
    assert [(hole["guest_phys_addr"], hole["size"]) for hole in last["holes"]] == [
        ("0x0", "0xc0000"),
        ("0xc0000", "0x8000"),
        ("0xc8000", "0xff38000"),
    ]


def test_a_document_without_a_vm_is_one() -> None:
    jsonschema.validate(document(), DOCUMENT)
    assert document()["summary"]["longest_hole_us"] == 0


def test_the_summary_says_what_was_exposed_and_what_the_recording_cannot_tell() -> None:
    said = " ".join(shown(audit_file(str(SHIPPED))).split())
    assert "11 memory map updates, 5 of them add memory where they delete some; 2 were exposed" in said
    assert "Memory was missing for up to 1.26 ms" in said
    assert "It may have been asleep there" in said


def test_a_clean_recording_is_called_clean() -> None:
    assert "none was exposed" in shown(audit_file(str(RECORDINGS / "qemu-10.0-pam-lives.strace.gz")))


def test_a_long_table_shows_what_matters_and_how_much_it_leaves_out() -> None:
    one = audit_file(str(RECORDINGS / "qemu-10.0-pam-lives.strace.gz"))
    assert "382 other updates not shown" in shown(one)
    assert shown(one, every=True).count("│yes") + shown(one, every=True).count("│ yes") >= 406


def test_of_many_vms_the_later_ones_have_their_headline_alone() -> None:
    one = audited(*(slot(number, 0, 0, 4096, fd=100 + number) for number in range(14)))
    assert (shown(one).count("VM (fd"), shown(one).count("needs hold")) == (14, 12)
    assert shown(one, every=True).count("needs hold") == 14


EXPOSED = [slot(0, 0, 0, 4096), run(0.5, tail=UNFINISHED), slot(1, 0, 0, 0), slot(1.0015, 0, 0, 4096)]


def test_with_tracepoints_the_report_says_who_was_in_guest_mode() -> None:
    said = " ".join(shown(audited(*EXPOSED[:2], line(0.6, "kvm_entry"), *EXPOSED[2:])).split())
    assert "In 1 such update one was in guest mode" in said
    assert "11 (guest mode)" in said


def test_what_is_not_known_is_said() -> None:
    blind = line(0.2, "ioctl(8, KVM_SET_USER_MEMORY_REGION2, 0x7ffd) = 0", thread=10)
    log = line(0.3, "ioctl(8, KVM_GET_DIRTY_LOG, 0x7ffd) = 0", thread=10)
    said = " ".join(shown(audited(blind, log, slot(1, 0, 0, 0), slot(2, 0, 0, 4096)[:80])).split())
    for words in (
        "2 slot calls without contents: from the first one on, at 1700000000.200000, this VM's map is unknown",
        "1 slot deleted that nobody was seen to make",
        "1 call about dirty logs",
        "1 line of 4 name a slot call or KVM_RUN, or may have, and could not be read",
    ):
        assert words in said


def test_a_headline_counts_only_while_a_vcpu_was_inside_and_a_range_missing() -> None:
    late = [slot(0, 0, 0, 4096), slot(1, 0, 0, 0), slot(1.003, 0, 0, 4096), run(1.004, tail=UNFINISHED)]
    said = " ".join(shown(audited(*late, slot(1.005, 5, 0x90000, 4096))).split())
    assert "1 was exposed" in said
    assert "in none while a range is known to be missing" in said
    assert "missing for up to" not in said


def test_where_no_slot_call_has_contents_nothing_is_called_clean() -> None:
    blind = line(1, "ioctl(8, KVM_SET_USER_MEMORY_REGION2, 0x7ffd) = 0", thread=10)
    said = shown(audited(blind))
    assert "whether one was exposed is not known" in said
    assert "none was exposed" not in said
    assert "No update seen to be exposed" in page([audited(blind)])


def test_a_thread_without_an_entry_or_exit_is_of_unknown_mode() -> None:
    woken = line(0.6, "kvm_vcpu_wakeup: wait time 91252 ns")
    only = audited(*EXPOSED[:2], woken, *EXPOSED[2:])
    assert not only.findings.has_tracepoints
    assert only.findings.vms[0].updates[-1].in_guest_mode is None
    said = " ".join(shown(audited(*EXPOSED[:2], woken, line(0.7, "kvm_entry", thread=12), *EXPOSED[2:])).split())
    assert "11 (mode unknown)" in said
    assert "no kvm_entry or kvm_exit of theirs had been recorded" in said


def test_a_thread_whose_first_tracepoint_is_an_exit_was_in_guest_mode_until_then() -> None:
    one = audited(*EXPOSED[:3], line(1.001, "kvm_exit"), EXPOSED[3])
    assert one.findings.vms[0].updates[-1].in_guest_mode == (11,)


def test_of_many_updates_those_with_the_longest_holes_are_shown() -> None:
    lines = [slot(0, 0, 0, 4096)]
    for number in range(1, 60):
        lines += [slot(number, 0, 0, 0), slot(number + (0.004 if number == 50 else 0.001), 0, 0, 4096)]
    assert "4.00 ms" in shown(audited(*lines))


def test_a_hold_that_is_needed_without_a_hole_is_explained() -> None:
    moved = [slot(0, 0, 0, 8192), slot(1, 0, 4096, 8192)]
    assert "memory moved within one call" in shown(audited(*moved))


def test_what_stands_at_the_end_of_a_time_line_is_within_its_picture() -> None:
    drawn = time_line(audited(*EXPOSED).findings.vms[0], "vm0")
    boxes = [box for box in drawn.iter("rect") if box.get("class") != "rail"]
    assert len(boxes) == 3
    assert all(float(box.get("x", 0)) + float(box.get("width", 0)) <= 1000.01 for box in boxes)


def test_a_close_up_counts_its_times_from_where_its_words_do() -> None:
    drawn = close_up(audited(*EXPOSED).findings.vms[0].updates[-1], 2)
    assert "-187 µs" in [text.text for text in drawn.iter("text")]


def test_a_name_cannot_steer_the_terminal() -> None:
    assert "\x1b" not in shown(audited(*EXPOSED, name="a\x1b[31mb[bold]"))


@pytest.mark.parametrize("name", ["run.strace", "a b/<c>&\x00\x1b.gz", "/tmp/ü.gz"])
def test_junit_has_a_case_for_each_update_and_a_failure_for_each_exposed_one(name: str) -> None:
    root = ET.XML(junit([audited(*EXPOSED, name=name)]))
    (suite,) = root.findall("testsuite")
    assert (suite.get("tests"), suite.get("failures"), len(suite.findall("testcase"))) == ("2", "1", 2)
    (failure,) = root.iter("failure")
    assert "4 KiB at 0x0 was missing for 1.50 ms" in (failure.get("message") or "")


def test_junit_reports_what_could_not_be_read_as_an_error() -> None:
    root = ET.XML(junit([audited(slot(1, 0, 0, 4096)[:80])]))
    assert [error.get("type") for error in root.iter("error")] == ["doubtful", "doubtful"]


def test_sarif_has_a_result_for_each_exposed_update_at_its_line() -> None:
    log = json.loads(sarif([audit_file(str(SHIPPED))]))
    assert log["version"] == "2.1.0"
    (one,) = log["runs"]
    rules = [rule["id"] for rule in one["tool"]["driver"]["rules"]]
    assert [rules[result["ruleIndex"]] for result in one["results"]] == ["exposed-update"] * 2
    for result in one["results"]:
        assert (result["ruleId"], result["level"]) == ("exposed-update", "error")
        place = result["locations"][0]["physicalLocation"]
        assert place["artifactLocation"]["uri"].startswith("file:///")
        assert place["region"]["startLine"] > 1
        assert "inside KVM_RUN" in result["message"]["text"]


def test_sarif_warns_of_what_could_not_be_read_and_its_relative_names_are_uris() -> None:
    (one,) = json.loads(sarif([audited(slot(1, 0, 0, 4096)[:80], name="a b.strace")]))["runs"]
    assert {result["level"] for result in one["results"]} == {"warning"}
    assert one["results"][0]["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "a%20b.strace"


def test_a_lane_stays_small_and_covers_what_it_was_given() -> None:
    lane = Lane()
    for number in range(10 * MOST_STAYS):
        lane.add(number * 100, number * 100 + 10)
    assert lane.runs == 10 * MOST_STAYS
    assert 0 < len(lane.stays) <= MOST_STAYS
    assert (lane.stays[0][0], lane.stays[-1][1]) == (0, (10 * MOST_STAYS - 1) * 100 + 10)
    assert all(one[1] < other[0] for one, other in zip(lane.stays, lane.stays[1:], strict=False))


def test_a_path_is_kept_as_it_was_given() -> None:
    assert document(audit_file(str(SHIPPED)))["vms"][0]["trace"] == str(Path(SHIPPED))
