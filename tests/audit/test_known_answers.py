"""Recordings of real VMMs, with the answers that were worked out by hand."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from tests.audit.lines import RECORDINGS, SHIPPED
from vmmd_client.audit import Hole, TraceError, audit_file

DATA = Path(__file__).parent / "data"


@pytest.mark.parametrize(
    ("path", "updates", "needs_hold", "exposed"),
    [
        (SHIPPED, 11, 5, [10, 11]),
        (RECORDINGS / "qemu-7.2-pc-migrate.strace.gz", 11, 3, []),
        (RECORDINGS / "qemu-7.2-pam-dies.strace.gz", 9, 7, [9]),
        (RECORDINGS / "qemu-10.0-pam-lives.strace.gz", 407, 406, []),
    ],
    ids=lambda value: value.name if isinstance(value, Path) else None,
)
def test_a_recorded_qemu_has_its_known_updates(path: Path, updates: int, needs_hold: int, exposed: list[int]) -> None:
    audited = audit_file(str(path))
    (found,) = audited.findings.vms
    assert (len(found.updates), found.needs_hold) == (updates, needs_hold)
    assert [number for number, update in enumerate(found.updates, 1) if update.exposed] == exposed
    assert not audited.is_doubtful


def test_what_seabios_does_to_its_low_memory_leaves_these_holes() -> None:
    second = audit_file(str(SHIPPED)).findings.vms[0].updates[1]
    assert second.holes == (
        Hole(0, 0xA0000, 0, 1, 389),
        Hole(0, 0xA0000, 5, 6, 3159),
        Hole(0xC0000, 0x20000, 0, 2, 610),
        Hole(0xE0000, 0x20000, 0, 3, 899),
        Hole(0x100000, 0xFF00000, 0, 4, 1095),
    )


@pytest.mark.parametrize(
    ("name", "updates", "needs_hold", "exposed"),
    [
        ("qemu-7.2-pam-dies-tt-y-T.strace.gz", 7, 7, 1),
        ("qemu-7.2-pam-r.strace.gz", 54, 53, 47),
        ("qemu-7.2-pam-dies.bpftrace.gz", 8, 8, 2),
    ],
)
def test_other_ways_to_record_are_read_as_well(name: str, updates: int, needs_hold: int, exposed: int) -> None:
    audited = audit_file(str(DATA / name))
    (found,) = audited.findings.vms
    assert (len(found.updates), found.needs_hold, found.exposed) == (updates, needs_hold, exposed)
    assert sorted(filter(None, found.vm.vcpus.values())) == [1]
    assert audited.unread_lines == 0


def test_a_plain_file_reads_like_a_gzipped_one(tmp_path: Path) -> None:
    packed = RECORDINGS / "qemu-7.2-pam-dies.strace.gz"
    plain = tmp_path / "trace"
    plain.write_bytes(gzip.decompress(packed.read_bytes()))
    one, other = (audit_file(str(path)).findings.vms[0].updates for path in (plain, packed))
    assert [(update.line, update.holes) for update in one] == [(update.line, update.holes) for update in other]


def test_a_gzip_stream_that_is_cut_off_is_read_as_far_as_it_goes_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "trace.gz"
    path.write_bytes(SHIPPED.read_bytes()[:20_000])
    audited = audit_file(str(path))
    assert audited.cut_off
    assert audited.is_doubtful
    assert 0 < len(audited.findings.vms[0].updates) <= 11


@pytest.mark.parametrize("content", [b"", b"hello\n", b"\x1f\x8bnot gzip", b"\x1f\x8b\x08\x00"])
def test_a_file_that_is_no_recording_is_an_error_that_names_it(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "thing"
    path.write_bytes(content)
    with pytest.raises(TraceError, match="thing"):
        audit_file(str(path))


def test_a_file_that_is_not_there_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="none"):
        audit_file(str(tmp_path / "none"))
