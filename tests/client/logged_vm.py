"""A VM with logged slots, and stores that its log has to know of."""

from vmmd_client import Client, MemFlag, Vm

PAGE = 4096
LOG = int(MemFlag.LOG_DIRTY_PAGES)


async def a_vm(client: Client) -> Vm:
    """Slots 0 and 1 are plain and neighbours, 2 and 3 log and are neighbours, 4 lies by itself."""
    vm = await client.kvm.create_vm()
    base = await vm.map_host_memory(256 * PAGE)
    for slot, first, pages, flags in [(0, 0, 4, 0), (1, 4, 4, 0), (2, 16, 70, LOG), (3, 86, 6, LOG), (4, 128, 2, 0)]:
        await vm.set_user_memory_region(
            slot,
            guest_phys_addr=first * PAGE,
            memory_size=pages * PAGE,
            userspace_addr=base + first * PAGE,
            flags=flags,
        )
    return vm


STORES = [page * PAGE for page in (16, 17, 80, 85, 86, 91)]


async def store(vm: Vm) -> None:
    for gpa in STORES:
        await vm.write_guest_memory(gpa, b"\1")
