"""The bounds of what VMs may use."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """What a VM may use, and how long its calls may wait. Times are milliseconds, memory is bytes."""

    guest_memory_bytes: int
    vms: int
    vcpus_per_vm: int
    wait_ms: int = 1000
    max_wait_ms: int = 60_000
    lease_ms: int = 5000
    max_lease_ms: int = 60_000
    sparse_mapping_bytes: int = 64 << 40
    sparse_mapping_bytes_per_vm: int = 16 << 40
