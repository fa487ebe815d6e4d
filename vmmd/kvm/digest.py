"""What a cooperative VM has come to, as a number: sha256 over its exits, its vCPUs' registers and its memory.

Of memory each page counts that is not all zeroes, once, at its userspace address, whether a slot leads to it or not;
so what it costs goes with what was written, and not with what is mapped. The slot table counts too.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable
from dataclasses import fields

from vmmd.kvm import registers
from vmmd.kvm.errors import KvmError
from vmmd.kvm.exits import Exit
from vmmd.kvm.vcpu import Vcpu
from vmmd.memory.contents import written_pages
from vmmd.memory.view import View

_SLOT = struct.Struct("<QQQQQ")
_ADDRESS = struct.Struct("<Q")


class History:
    """What KVM_RUN has returned to the run loops of a VM since it was made, in order."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def note(self, vcpu: Vcpu, result: Exit | KvmError) -> None:
        """Add an exit with its data, or an error, and where its vCPU stood."""
        if isinstance(result, KvmError):
            what: list[object] = [result.name]
        else:
            what = [result.reason, *(_plain(getattr(result, field.name)) for field in fields(result))]
        record = vcpu.context.record
        self._hash.update(json.dumps([vcpu.id, int(record.retired), int(record.pc), what]).encode())

    def digest(self, vcpus: Iterable[Vcpu], view: View) -> str:
        """Return the digest of all that was, and of what is there now; no vCPU runs."""
        state = self._hash.copy()
        for vcpu in sorted(vcpus, key=lambda vcpu: vcpu.id):
            state.update(json.dumps([vcpu.id, vcpu.lines.halted, registers.read(vcpu.context)]).encode())
        for slot in view.memslots:
            state.update(_SLOT.pack(slot.slot, slot.flags, slot.guest_phys_addr, slot.memory_size, slot.userspace_addr))
        for userspace_addr, page in written_pages(view.host):
            state.update(_ADDRESS.pack(userspace_addr))
            state.update(page)
        return state.hexdigest()


def _plain(value: object) -> object:
    return value.hex() if isinstance(value, bytes) else value
