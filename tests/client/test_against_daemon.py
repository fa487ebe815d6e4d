"""The library against a real daemon process: what the fake one cannot vouch for."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import pytest_asyncio

from vmmd_client import (
    AlreadyExists,
    BadVm,
    Client,
    HoldConflict,
    HoldFailed,
    HttpTransport,
    Interrupted,
    InvalidArgument,
    MemFlag,
    RpcError,
    SlotOverlap,
    StaleGeneration,
    TransactionRefused,
    Vm,
    calls,
    connect,
)
from vmmd_client.local_daemon import local_daemon
from vmmd_client.slots.memslots import Memslot, deletion_of
from vmmd_client.wire.protocol import Question

# One daemon serves the whole module; each test has a VM of its own.
pytestmark = pytest.mark.asyncio(loop_scope="module")

PAGE = 4096
# Counts at gpa 0x2000 for good.
COUNT = "li t1, 0x2000\n1: addi t0, t0, 1\n sd t0, 0(t1)\n j 1b\n"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def url() -> AsyncIterator[str]:
    async with local_daemon() as url:
        yield url


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def vmmd(url: str) -> AsyncIterator[Client]:
    async with connect(url) as client:
        yield client


async def counting_vm(vmmd: Client, data_flags: int = 0) -> Vm:
    """A VM with a vCPU that counts: slot 0 its code at 0x1000, slot 1 its counter at 0x2000."""
    vm = await vmmd.kvm.create_vm("counting")
    memory = await vm.map_host_memory(16 * PAGE, "all")
    await vm.write_host_memory(memory, (await vmmd.isa.assemble(COUNT, 0x1000)).code)
    await vm.set_user_memory_region(0, guest_phys_addr=0x1000, memory_size=PAGE, userspace_addr=memory)
    await vm.set_user_memory_region(
        1, guest_phys_addr=0x2000, memory_size=PAGE, userspace_addr=memory + PAGE, flags=data_flags
    )
    vcpu = await vm.create_vcpu(0)
    await vcpu.set_regs({"pc": 0x1000})
    return vm


async def counted(vm: Vm) -> int:
    return int.from_bytes(await vm.read_guest_memory(0x2000, 8), "little")


async def counts_on(vm: Vm) -> None:
    """Wait until the guest has counted on."""
    before = await counted(vm)
    async with asyncio.timeout(20):
        while await counted(vm) == before:
            pass


class TooHighASlot(HttpTransport):
    """A way to the daemon on which slot 7 becomes one that KVM does not have."""

    async def exchange(self, question: Question, timeout_s: float) -> bytes:
        tampered = question.body.replace(b'"slot":7,', b'"slot":40000,')
        return await super().exchange(replace(question, body=tampered), timeout_s)


async def grow_and_create_slot_7(vm: Vm) -> None:
    async with vm.transaction() as t:
        slot = t.grow(1, PAGE)
        t.create(7, guest_phys_addr=0x10_0000, memory_size=PAGE, userspace_addr=slot.userspace_addr)


async def test_a_transaction_under_a_running_guest_is_never_noticed(vmmd: Client):
    vm = await counting_vm(vmmd)
    await vm.start()
    await counts_on(vm)
    for size in (2 * PAGE, 3 * PAGE, PAGE) * 10:
        async with vm.transaction() as t:
            old = t.delete(1)
            t.create(1, guest_phys_addr=0x2000, memory_size=size, userspace_addr=old.userspace_addr)
        assert t.result.pause_ns is not None
    async with vm.transaction() as t:
        t.merge(0, 1)
    await counts_on(vm)
    stats = await vm.get_stats()
    assert (stats.stray_exits, stats.exits) == (0, {})
    assert (await vm.slot_table()).slots == (await vm.get_memory_regions()).slots
    await vm.stop()


async def test_the_dirty_bitmap_of_a_slot_that_goes_has_the_running_guests_last_store(vmmd: Client):
    vm = await counting_vm(vmmd, MemFlag.LOG_DIRTY_PAGES)
    await vm.start("ones")
    await counts_on(vm)
    async with vm.transaction() as t:
        t.delete(1)
    (dirty,) = t.result.dirty
    assert list(dirty.dirty_pages()) == [0x2000]
    await vm.stop()


async def test_a_refused_step_leaves_the_map_and_the_running_guest_as_they_were(vmmd: Client, url: str):
    vm = await counting_vm(vmmd)
    before = await vm.get_memory_regions()
    await vm.start()
    async with Client(TooHighASlot(url)) as other:
        with pytest.raises(TransactionRefused, match="step 2") as caught:
            await grow_and_create_slot_7(other.vm(vm.id))
    assert isinstance(caught.value.__cause__, InvalidArgument)
    assert caught.value.rolled_back
    assert (await vm.get_memory_regions()).slots == before.slots
    await counts_on(vm)
    assert (await vm.get_stats()).stray_exits == 0
    await vm.stop()


async def test_two_clients_changing_one_map_notice_each_other(vmmd: Client, url: str):
    vm = await counting_vm(vmmd)
    async with connect(url) as second:
        await change_one_map(vm, second.vm(vm.id))


async def change_one_map(vm: Vm, other: Vm) -> None:
    await other.slot_table()
    async with vm.transaction() as t:
        t.delete(1)
    generation = t.result.generation

    async def late() -> None:
        async with other.transaction(hold=True) as t:
            t.delete(1)

    with pytest.raises(StaleGeneration):
        await late()
    assert (await other.slot_table()).generation == generation


async def test_calls_without_the_holds_name_are_kept_out_while_it_is_open(vmmd: Client):
    vm = await counting_vm(vmmd)
    async with vm.hold() as hold:
        with pytest.raises(HoldConflict):
            await vm.read_guest_memory(0x2000, 8)
        assert await vm.read_guest_memory(0x2000, 8, hold=hold.name) == bytes(8)
    assert await counted(vm) == 0


async def test_each_error_has_its_class(vmmd: Client):
    vm = await counting_vm(vmmd)
    with pytest.raises(BadVm):
        await vmmd.vm("none").get_stats()
    with pytest.raises(AlreadyExists) as caught:
        await vm.create_vcpu(0)
    assert not isinstance(caught.value, SlotOverlap)
    with pytest.raises(InvalidArgument):
        await vm.map_host_memory(5)
    with pytest.raises(InvalidArgument, match="line 2"):
        await vmmd.isa.assemble("nop\nfrobnicate x1\n")
    with pytest.raises(Interrupted):
        await vm.vcpu(0).run(timeout_ms=1)
    with pytest.raises(RpcError) as refused:
        await vmmd.call("vm.get_stats", vm=vm.id, colour="blue")
    assert refused.value.code == -32602


async def test_a_batch_with_an_unknown_method_changes_nothing(vmmd: Client):
    vm = await counting_vm(vmmd)
    before = await vm.get_memory_regions()
    async with vmmd.batch() as batch:
        batch.add(calls.kick_all_running_vcpus(vm.id, "update"))
        batch.call("vm.no_such_method", vm=vm.id)
        batch.add(calls.set_user_memory_region(vm.id, deletion_of(before.slots[1]), hold="update"))
        resume = batch.add(calls.resume_all_kicked_vcpus(vm.id, "update"))
    assert resume.error is not None
    assert (await vm.get_memory_regions()).slots == before.slots


async def test_a_list_of_regions_and_a_raw_kick_through_the_client(vmmd: Client) -> None:
    vm = await vmmd.kvm.create_vm()
    base = await vm.map_host_memory(2 * PAGE)
    one, two = Memslot(1, 0, 0x10_0000, PAGE, base), Memslot(2, 0, 0x10_0000 + PAGE, PAGE, base + PAGE)
    await vm.set_user_memory_region_list([one, two])
    merged = await vm.set_user_memory_region_list(
        [Memslot(1, 0, 0, 0, 0), Memslot(2, 0, 0, 0, 0), Memslot(1, 0, 0x10_0000, 2 * PAGE, base)]
    )
    assert merged.pause_ns is not None
    assert list((await vm.get_memory_regions()).slots) == [1]
    assert (await vm.kick_all_running_vcpus()).hold is None
    assert (await vm.resume_all_kicked_vcpus()).pause_ns is None


async def test_a_hold_is_renewed_and_one_that_is_forgotten_is_rolled_back(vmmd: Client) -> None:
    vm = await vmmd.kvm.create_vm()
    async with vm.hold(lease_ms=10_000) as hold:
        assert hold.kick.lease_ms == 10_000
        await hold.renew()
    with pytest.raises(HoldFailed):
        async with vm.hold(lease_ms=1) as hold:
            await vm.map_host_memory(PAGE, wait_ms=10_000)


async def test_a_cooperative_vm_is_advanced_and_the_same_calls_give_the_same_digest(vmmd: Client) -> None:
    digests = []
    for _ in range(2):
        vm = await vmmd.kvm.create_vm(execution="cooperative", seed=7)
        memory = await vm.map_host_memory(2 * PAGE)
        await vm.set_user_memory_region(0, guest_phys_addr=0x1000, memory_size=PAGE, userspace_addr=memory)
        await vm.set_user_memory_region(1, guest_phys_addr=0x2000, memory_size=PAGE, userspace_addr=memory + PAGE)
        await vm.write_guest_memory(0x1000, (await vmmd.isa.assemble(COUNT, 0x1000)).code)
        for vcpu_id in range(2):
            await (await vm.create_vcpu(vcpu_id)).set_regs({"pc": 0x1000})
        assert (await vm.advance(1000)).instructions == 1000
        async with vm.transaction() as change:
            change.merge(0, 1)
        advanced = await vm.advance(1000)
        assert (advanced.instructions, advanced.ended_by) == (1000, "instructions")
        assert (await vm.get_stats()).instructions == 2000
        assert (await vm.get_stats()).stray_exits == 0
        digests.append(advanced.digest)
        with pytest.raises(InvalidArgument):
            await vm.start()
        await vm.destroy()
    assert digests[0] == digests[1]


# Stores ascending numbers to pages 16 to 31, one after another, for good.
STORE_EVERYWHERE = """
start: li t1, 0x10000
    li t2, 0x20000
    li t3, 0x1000
1:  addi t0, t0, 1
    sd t0, 0(t1)
    add t1, t1, t3
    bne t1, t2, 1b
    j start
"""


async def test_a_copy_that_follows_the_dirty_view_is_the_memory_whatever_becomes_of_the_slots(vmmd: Client):
    vm = await vmmd.kvm.create_vm("followed")
    memory = await vm.map_host_memory(32 * PAGE)
    await vm.write_host_memory(memory, (await vmmd.isa.assemble(STORE_EVERYWHERE, 0)).code)
    await vm.set_user_memory_region(0, guest_phys_addr=0, memory_size=PAGE, userspace_addr=memory)
    await vm.set_user_memory_region(
        1, guest_phys_addr=0x1_0000, memory_size=16 * PAGE, userspace_addr=memory + 0x1_0000, flags=1
    )
    await vm.create_vcpu(0)
    await vm.start()
    copy: dict[int, bytes] = {}

    async def follow() -> None:
        for gpa in await vm.dirty.fetch():
            copy[gpa] = await vm.read_guest_memory(gpa, 8)

    for round_number in range(12):
        async with vm.transaction() as t:
            if round_number % 2 == 0:
                _, high = t.split(1, 0x1_0000 + (1 + round_number) * PAGE)
            else:
                t.merge(1, high.slot)
        assert t.result.pause_ns is not None
        if round_number % 3 == 0:
            await follow()
    await vm.stop()
    await follow()
    pages = range(0x1_0000, 0x2_0000, PAGE)
    assert copy == {gpa: await vm.read_guest_memory(gpa, 8) for gpa in pages}
    assert (await vm.get_stats()).stray_exits == 0
    await vm.destroy()
