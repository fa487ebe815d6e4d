"""Real lines, mutated: no reader crashes, hangs, or makes something up that it does not count."""

from __future__ import annotations

import gzip
import io
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.audit.lines import RECORDINGS
from vmmd_client.audit import StraceReader, TracepointReader, audit, page
from vmmd_client.audit.ci import junit, sarif
from vmmd_client.audit.document import pieces
from vmmd_client.audit.recording import Audited

DATA = Path(__file__).parent / "data"


def lines_of(path: Path, first: int, count: int) -> list[str]:
    return gzip.decompress(path.read_bytes()).decode().splitlines()[first : first + count]


STRACE = [
    *lines_of(RECORDINGS / "qemu-7.2-pam-dies.strace.gz", 0, 8),
    *lines_of(RECORDINGS / "qemu-7.2-pam-dies.strace.gz", 130, 12),
    *lines_of(RECORDINGS / "qemu-7.2-pam-dies.strace.gz", 255, 60),
    *lines_of(DATA / "qemu-7.2-pam-dies-tt-y-T.strace.gz", 250, 30),
    *lines_of(DATA / "qemu-7.2-pam-dies.bpftrace.gz", 0, 40),
]
TRACER = [
    *lines_of(DATA / "qemu-7.2-pam-dies.perf-trace.gz", 240, 40),
    *lines_of(DATA / "qemu-7.2-pam-dies.perf-script.gz", 490, 40),
    "       CPU 0/KVM-4201  [001] d..1.  1842.570412: kvm_exit: vcpu 0 reason HLT rip 0xffffffff81e0115a",
]
SPLINTERS = st.sampled_from(
    [
        "",
        "\x00",
        "<unfinished ...>",
        ") = 0",
        "{slot=",
        "0x",
        "-1 EAGAIN",
        "9" * 40,
        "[pid ",
        "\ud7ff",
        "\r",
        "<" * 50,
        "(" * 50,
    ]
)


@st.composite
def mutated(draw: st.DrawFn, real: list[str]) -> list[str]:
    """Some real lines in some order, with bits cut out, doubled, or replaced."""
    out = []
    for line in draw(st.lists(st.sampled_from(real), max_size=30)):
        start, length = draw(st.integers(0, len(line))), draw(st.integers(0, 12))
        out.append(
            draw(
                st.sampled_from(
                    [line, line[:start], line[start:], line[:start] + draw(SPLINTERS) + line[start + length :]]
                )
            )
        )
    return out


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(mutated(STRACE))
def test_no_mutated_strace_line_breaks_the_reader_or_any_report(lines: list[str]) -> None:
    reader = StraceReader()
    found = audit(reader.read(lines))
    assert reader.lines == len(lines)
    assert reader.unread_lines <= 2 * len(lines)
    audited = Audited("fuzz", found, reader.lines, reader.unread_lines, cut_off=False)
    assert "</html>" in page.page([audited])
    assert all(isinstance(text, str) for text in (junit([audited]), sarif([audited]), *pieces([audited])))


@settings(max_examples=150, deadline=None)
@given(mutated(TRACER))
def test_no_mutated_tracer_line_breaks_the_reader(lines: list[str]) -> None:
    reader = TracepointReader()
    audit(reader.read(lines))
    assert reader.lines == len(lines)


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=400))
def test_no_text_at_all_breaks_a_reader(text: str) -> None:
    lines = list(io.StringIO(text))
    audit(StraceReader().read(lines))
    audit(TracepointReader().read(lines))


def test_a_line_without_an_end_is_not_searched_for_ever() -> None:
    reader = StraceReader()
    for text in ("1 " * 500_000, "ioctl(" * 200_000, "1 1700000000.000000 ioctl(8<" + "<" * 1_000_000, " " * 1_000_000):
        list(reader.feed(text))
        list(TracepointReader().feed(text))
    assert reader.lines == 4
