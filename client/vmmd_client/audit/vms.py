"""Which VM a file descriptor means: VMs that come and go, vCPUs, processes that use the same numbers.

Recorders print numbers, and a number means something in one process for as long as it is open. KVM_CREATE_VM and
KVM_CREATE_VCPU tell where one begins; close, where it was recorded, tells where it ends, and so does any call that
gives the same number anew. Which threads make up a process is known where the clone family was recorded. Where it was
not, a number that a thread makes a VM of while another thread's VM has it is taken to be another process's, and a
thread nobody knows is taken to belong to the nearest VM's maker with a smaller thread id; `guesses` counts these.
"""

import bisect
from dataclasses import dataclass, field

from ..slots.memslots import Memslot
from .events import FdClosed, FdMade, ThreadMade


@dataclass(slots=True, eq=False)
class Vm:
    """One VM of a recording.

    Attributes:
        number: the how manieth VM of the recording it is, from 0.
        fd: its file descriptor.
        maker: the thread that made it; None where the recording began later.
        slots: its slots as far as the calls so far tell, by slot id; changed in place.
        vcpus: the ids of its vCPUs by their file descriptors; None where the recording does not show one's id.
        threads: the threads that were seen to use it.
        unknown_since_us: when its map became unknown; None where it is known.
        unseen_calls: slot calls whose contents or outcome the recording does not show.
        unseen_slots: deleted slots that nobody was seen to make: the recording began after them.
        log_calls: calls about its dirty logs, which are shown without their contents.
        closed: whether its file descriptor was closed.
    """

    number: int
    fd: int
    maker: int | None
    slots: dict[int, Memslot] = field(default_factory=dict)
    vcpus: dict[int, int | None] = field(default_factory=dict)
    threads: set[int] = field(default_factory=set)
    unknown_since_us: int | None = None
    unseen_calls: int = 0
    unseen_slots: int = 0
    log_calls: int = 0
    closed: bool = False


class _Holders:
    """The VMs, of different processes, that have one number open."""

    def __init__(self) -> None:
        self.vms: dict[Vm, None] = {}
        self._by_maker: list[tuple[int, int, Vm]] = []

    def add(self, vm: Vm) -> None:
        if vm not in self.vms:
            self.vms[vm] = None
            bisect.insort(self._by_maker, (vm.maker or 0, vm.number, vm), key=_maker_and_number)

    def remove(self, vm: Vm) -> None:
        if vm in self.vms:
            del self.vms[vm]
            place = vm.maker or 0, vm.number
            del self._by_maker[bisect.bisect_left(self._by_maker, place, key=_maker_and_number)]

    def before(self, thread: int) -> Vm:
        """Give the VM whose maker has the nearest smaller thread id; the nearest larger one where there is none."""
        at = bisect.bisect_left(self._by_maker, thread + 1, key=_maker)
        maker = self._by_maker[at - 1][0]
        return self._by_maker[bisect.bisect_left(self._by_maker, maker, key=_maker)][2]


def _maker(held: tuple[int, int, Vm]) -> int:
    return held[0]


def _maker_and_number(held: tuple[int, int, Vm]) -> tuple[int, int]:
    return held[:2]


class Vms:
    """All VMs of a recording; what one call costs does not grow with how many there are.

    Attributes:
        all: every VM, in the order in which they came up.
        guesses: how many threads were put to a process without the recording saying so.
    """

    def __init__(self) -> None:
        self.all: list[Vm] = []
        self.guesses = 0
        self._standing: dict[Vm, None] = {}
        self._open: dict[int, _Holders] = {}
        self._by_vcpu_fd: dict[int, _Holders] = {}
        self._by_thread: dict[tuple[int, int], Vm] = {}
        self._process: dict[int, int] = {}
        self._made_by: dict[int, dict[Vm, None]] = {}
        self._of_process: dict[int, dict[Vm, None]] = {}
        self._used_by: dict[int, dict[Vm, None]] = {}
        self._makerless: dict[Vm, None] = {}

    def of_vm_fd(self, thread: int, fd: int) -> Vm:
        """Give the VM that a thread means with a VM's file descriptor; one that nobody saw made is made up here."""
        found = self._by_thread.get((thread, fd))
        if found is None or found.closed:
            holders = self._open.get(fd)
            found = self._nearest(thread, holders) if holders is not None and holders.vms else self._add(fd, None)
            self._by_thread[thread, fd] = found
            self._uses(thread, found)
        return found

    def of_vcpu_fd(self, thread: int, fd: int) -> Vm | None:
        """Give the VM that a thread means with a vCPU's file descriptor; None where it could be any."""
        found = self._by_thread.get((thread, ~fd))
        if found is None or found.closed:
            holders = self._by_vcpu_fd.get(fd)
            if holders is None or not holders.vms:
                # The recording began after the vCPU was made. With one VM there is nothing to choose.
                return next(iter(self._standing)) if len(self._standing) == 1 else None
            found = self._nearest(thread, holders)
            self._by_thread[thread, ~fd] = found
            self._uses(thread, found)
        return found

    def made(self, event: FdMade) -> Vm | None:
        """Take a new VM or vCPU; gives the VM whose file descriptor was given anew, which has been closed before."""
        ended = self._end(event.thread, event.fd, same_process=event.kind == "vcpu")
        if event.kind == "vm":
            vm = self._add(event.fd, event.thread)
            self._uses(event.thread, vm)
            self._by_thread[event.thread, event.fd] = vm
        else:
            vm = self.of_vm_fd(event.thread, event.parent_fd)
            vm.vcpus[event.fd] = event.vcpu
            self._by_vcpu_fd.setdefault(event.fd, _Holders()).add(vm)
        return ended

    def closed(self, event: FdClosed) -> Vm | None:
        """Take a close; gives the VM that is no more."""
        return self._end(event.thread, event.fd, same_process=True)

    def thread_made(self, event: ThreadMade) -> None:
        """Take a new thread: of its maker's process, or the first of another."""
        process = self._process.get(event.thread, event.thread)
        self._belongs(event.thread, process)
        self._belongs(event.child, process if event.shares_fds else event.child)

    def _belongs(self, thread: int, process: int) -> None:
        before = self._process.get(thread)
        if before == process:
            return
        self._process[thread] = process
        own = self._made_by.get(thread, {})
        if own:
            if before is not None:
                for vm in own:
                    self._of_process[before].pop(vm, None)
            self._of_process.setdefault(process, {}).update(own)

    def _add(self, fd: int, maker: int | None) -> Vm:
        vm = Vm(len(self.all), fd, maker)
        self.all.append(vm)
        self._standing[vm] = None
        self._open.setdefault(fd, _Holders()).add(vm)
        if maker is None:
            self._makerless[vm] = None
        else:
            self._made_by.setdefault(maker, {})[vm] = None
            if maker in self._process:
                self._of_process.setdefault(self._process[maker], {})[vm] = None
        return vm

    def _uses(self, thread: int, vm: Vm) -> None:
        vm.threads.add(thread)
        self._used_by.setdefault(thread, {})[vm] = None

    def _end(self, thread: int, fd: int, *, same_process: bool) -> Vm | None:
        """End the VM that has this number in the thread's process, if there is one."""
        holders = self._open.get(fd)
        if holders is None or not holders.vms:
            return None
        sharing = self._sharing(thread, holders)
        if not sharing and same_process and len(holders.vms) == 1:
            sharing = [vm for vm in holders.vms if not self._is_foreign(thread, vm)]
        if not sharing:
            return None
        ended = min(sharing, key=lambda vm: vm.number)
        self._forget(ended)
        return ended

    def _forget(self, vm: Vm) -> None:
        vm.closed = True
        vm.slots.clear()
        self._open[vm.fd].remove(vm)
        for fd in vm.vcpus:
            if fd in self._by_vcpu_fd:
                self._by_vcpu_fd[fd].remove(vm)
        for own in (self._standing, self._makerless, *(self._used_by[thread] for thread in vm.threads)):
            own.pop(vm, None)
        if vm.maker is not None:
            self._made_by[vm.maker].pop(vm, None)
            if vm.maker in self._process:
                self._of_process.get(self._process[vm.maker], {}).pop(vm, None)

    def _is_foreign(self, thread: int, vm: Vm) -> bool:
        """Tell whether the clone family shows that a thread and a VM belong to different processes."""
        both = thread in self._process and vm.maker in self._process
        return both and self._process[thread] != self._process[vm.maker or 0]

    def _sharing(self, thread: int, holders: _Holders) -> list[Vm]:
        """Give the VMs of a thread's process, by the clone family or by what the thread was seen to use."""
        own: dict[Vm, None] = {}
        for known in (self._used_by.get(thread), self._of_process.get(self._process.get(thread, -1)), self._makerless):
            if known:
                fewer, more = (known, holders.vms) if len(known) < len(holders.vms) else (holders.vms, known)
                own |= {vm: None for vm in fewer if vm in more}
        return [vm for vm in own if not self._is_foreign(thread, vm)]

    def _nearest(self, thread: int, holders: _Holders) -> Vm:
        sharing = self._sharing(thread, holders)
        if len(sharing) == 1:
            return sharing[0]
        if len(holders.vms) == 1:
            return next(iter(holders.vms))
        self.guesses += 1
        return holders.before(thread)
