"""A client that is killed while it sends a batch, or while it waits for the answer: the old map or the new one."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from vmmd_client import Client, connect
from vmmd_client.local_daemon import local_daemon

PAGE = 4096
SPLIT = [(1, 0x10_0000, PAGE, 0), (2, 0x10_0000 + PAGE, PAGE, PAGE)]
MERGED = [(1, 0x10_0000, 2 * PAGE, 0)]


def batch(vm: str, base: int, now: list[tuple[int, int, int, int]], hold: str) -> list[dict[str, Any]]:
    """Return the calls that turn one map into the other."""
    after = MERGED if now == SPLIT else SPLIT

    def change(slot: int, gpa: int, size: int, offset: int) -> dict[str, Any]:
        return {
            "jsonrpc": "2.0",
            "id": slot,
            "method": "vm.set_user_memory_region",
            "params": {
                "vm": vm,
                "slot": slot,
                "flags": 0,
                "guest_phys_addr": gpa,
                "memory_size": size,
                "userspace_addr": base + offset,
                "hold": hold,
            },
        }

    def frame(method: str, **params: Any) -> dict[str, Any]:
        return {"jsonrpc": "2.0", "id": method, "method": method, "params": {"vm": vm, "hold": hold, **params}}

    return [
        frame("vm.kick_all_running_vcpus", wait_ms=20_000, lease_ms=20),
        *(change(slot, 0, 0, 0) for slot, *_ in now),
        *(change(*region) for region in after),
        frame("vm.resume_all_kicked_vcpus"),
    ]


async def killed(path: str, body: bytes, sent: int) -> None:
    """Send the first bytes of a request, and go."""
    head = f"POST /rpc HTTP/1.1\r\nHost: vmmd\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    _, writer = await asyncio.open_unix_connection(path)
    writer.write(head.encode() + body[:sent])
    await writer.drain()
    writer.transport.abort()


async def the_map(client: Client, vm_id: str, base: int) -> list[tuple[int, int, int, int]]:
    vm = client.vm(vm_id)
    # Answered once nobody holds the VM.
    await vm.read_host_memory(base, 1, wait_ms=20_000)
    slots = (await vm.get_memory_regions()).slots.values()
    return [(slot.slot, slot.guest_phys_addr, slot.memory_size, slot.userspace_addr - base) for slot in slots]


async def test_a_client_that_is_killed_at_any_byte_of_a_batch_leaves_the_old_map_or_the_new_one() -> None:
    async with local_daemon() as url, connect(url) as client:
        vm = await client.kvm.create_vm()
        base = await vm.map_host_memory(2 * PAGE)
        for slot, gpa, size, offset in SPLIT:
            await vm.set_user_memory_region(slot, guest_phys_addr=gpa, memory_size=size, userspace_addr=base + offset)
        path = url.removeprefix("unix://")
        seen, position, now = set(), 0, SPLIT
        while True:
            body = json.dumps(batch(vm.id, base, now, f"update {position}")).encode()
            sent = min(position, len(body))
            await killed(path, body, sent)
            now = await the_map(client, vm.id, base)
            assert now in (SPLIT, MERGED), (sent, now)
            seen.add(now == SPLIT)
            if sent == len(body):
                break
            position += 7
        async with vm.hold():
            pass
    assert True in seen
