"""What differs from run to run in what commands write, and a stand-in for it."""

from __future__ import annotations

import re

_VARYING = (
    (re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z"), "TIME"),
    (re.compile(r"\d\d:\d\d:\d\d(\.\d+)?"), "CLOCK"),
    (re.compile(r"(pid|process|Process) \d+"), r"\1 N"),
    (re.compile(r"^\[1\] \d+$", re.MULTILINE), "[1] N"),
    (re.compile(r'("epoch": ?)"[^"]+"'), r'\1"EPOCH"'),
    (re.compile(r'("(?:\w+_ns|uptime_ms|pid|time|instructions)": ?)"?[\d.]+"?'), r"\1N"),
    (re.compile(r"\w+_ns=\d+"), "ns=N"),
    (re.compile(r"[\d,]+(\.\d+)? (µs|ms|s|instructions)\b"), r"N \2"),
    (re.compile(r"[\d,]*\d\.\d+"), "N.N"),
    (re.compile(r"\b\d{1,3}(,\d{3})+\b"), "N"),
    (re.compile(r"^(vcpu \d|total) +\S+", re.MULTILINE), r"\1 N"),
    (re.compile(r"(?<= )\d*[1-9]\d*(,\d{3})*(?= )(?=.*MMIO)|(?<=MMIO )\S+"), "N"),
    (re.compile(r"0x(?!0{16})[0-9a-f]{16}"), "0xN"),
    (re.compile(r"^hold +\S+$", re.MULTILINE), "hold NAME"),
    (re.compile(r"resume (vm\d+) \S+"), r"resume \1 NAME"),
    (re.compile(r"[━─]+"), "━"),
    (re.compile(r" +"), " "),
    (re.compile(r" $", re.MULTILINE), ""),
)


def normalised(text: str) -> str:
    """Give text without what differs from run to run, and without the space around it."""
    for pattern, stand_in in _VARYING:
        text = pattern.sub(stand_in, text)
    return text.strip("\n")


def settled(shown: str, written: str) -> str:
    """Give what a document should show: what it shows, where that differs only as two runs do."""
    return shown if normalised(shown) == normalised(written) else written
