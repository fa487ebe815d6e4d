"""The kernel's recorded answers: sequences of memslot ioctls and guest accesses, and what Linux 6.18's KVM said.

One sequence a line: {"id", "host": {name: bytes}, "ops": [...]}; drawn ones also have "holes", {name: bytes}, which are
userspace addresses without memory. Userspace addresses are {"at": name, "offset": bytes}, or plain integers where the
address itself is under test. `want` is the kernel's answer. A guest access lists every exit on the way; MMIO reads were
answered with bytes a5.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RECORDING = Path(__file__).parent / "data" / "kvm-6.18-random.jsonl.gz"

Sequence = dict[str, Any]
Operation = dict[str, Any]
Answer = dict[str, Any]


def recorded_sequences() -> Iterator[Sequence]:
    """Give every recorded sequence."""
    with gzip.open(RECORDING, "rt") as lines:
        for line in lines:
            yield json.loads(line)
