"""Which VM a file descriptor means: VMs that come and go, vCPUs, processes that use the same numbers.

Recorders print numbers, and a number means something in one process for as long as it is open. KVM_CREATE_VM and
KVM_CREATE_VCPU tell where one begins; close, where it was recorded, tells where it ends, and so does any call that
gives the same number anew. Which threads make up a process is known where the clone family was recorded. Where it was
not, a number that a thread makes a VM of while another thread's VM has it is taken to be another process's, and a
thread nobody knows is taken to belong to the nearest VM's maker with a smaller thread id; `guesses` counts these.
"""

from dataclasses import dataclass, field

from ..memslots import Memslot
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


class Vms:
    """All VMs of a recording.

    Attributes:
        all: every VM, in the order in which they came up.
        guesses: how many threads were put to a process without the recording saying so.
    """

    def __init__(self) -> None:
        self.all: list[Vm] = []
        self.guesses = 0
        self._open: dict[int, list[Vm]] = {}
        self._by_vcpu_fd: dict[int, list[Vm]] = {}
        self._by_thread: dict[tuple[int, int], Vm] = {}
        self._process: dict[int, int] = {}

    def of_vm_fd(self, thread: int, fd: int) -> Vm:
        """Give the VM that a thread means with a VM's file descriptor; one that nobody saw made is made up here."""
        found = self._by_thread.get((thread, fd))
        if found is None or found.closed:
            candidates = self._open.get(fd, [])
            found = self._nearest(thread, candidates) if candidates else self._add(fd, None)
            self._by_thread[thread, fd] = found
            found.threads.add(thread)
        return found

    def of_vcpu_fd(self, thread: int, fd: int) -> Vm | None:
        """Give the VM that a thread means with a vCPU's file descriptor; None where it could be any."""
        found = self._by_thread.get((thread, ~fd))
        if found is None or found.closed:
            candidates = [vm for vm in self._by_vcpu_fd.get(fd, []) if not vm.closed]
            if not candidates:
                # The recording began after the vCPU was made. With one VM there is nothing to choose.
                standing = [vm for vm in self.all if not vm.closed]
                return standing[0] if len(standing) == 1 else None
            found = self._nearest(thread, candidates)
            self._by_thread[thread, ~fd] = found
            found.threads.add(thread)
        return found

    def made(self, event: FdMade) -> Vm | None:
        """Take a new VM or vCPU; gives the VM whose file descriptor was given anew, which has been closed before."""
        ended = self._end(event.thread, event.fd, same_process=event.kind == "vcpu")
        if event.kind == "vm":
            vm = self._add(event.fd, event.thread)
            vm.threads.add(event.thread)
            self._by_thread[event.thread, event.fd] = vm
        else:
            vm = self.of_vm_fd(event.thread, event.parent_fd)
            vm.vcpus[event.fd] = event.vcpu
            known = self._by_vcpu_fd.setdefault(event.fd, [])
            if vm not in known:
                known.append(vm)
        return ended

    def closed(self, event: FdClosed) -> Vm | None:
        """Take a close; gives the VM that is no more."""
        return self._end(event.thread, event.fd, same_process=True)

    def thread_made(self, event: ThreadMade) -> None:
        """Take a new thread: of its maker's process, or the first of another."""
        process = self._process.setdefault(event.thread, event.thread)
        self._process[event.child] = process if event.shares_fds else event.child

    def _add(self, fd: int, maker: int | None) -> Vm:
        vm = Vm(len(self.all), fd, maker)
        self.all.append(vm)
        self._open.setdefault(fd, []).append(vm)
        return vm

    def _end(self, thread: int, fd: int, *, same_process: bool) -> Vm | None:
        """End the VM that has this number in the thread's process, if there is one."""
        for vm in self._open.get(fd, []):
            if self._shares(thread, vm, otherwise=same_process and len(self._open[fd]) == 1):
                vm.closed = True
                vm.slots.clear()
                self._open[fd].remove(vm)
                return vm
        return None

    def _shares(self, thread: int, vm: Vm, *, otherwise: bool) -> bool:
        """Tell whether a thread belongs to a VM's process, by the clone family or by what it was seen to use."""
        if thread in self._process and vm.maker in self._process:
            return self._process[thread] == self._process[vm.maker]
        return thread in vm.threads or vm.maker is None or otherwise

    def _nearest(self, thread: int, candidates: list[Vm]) -> Vm:
        sharing = [vm for vm in candidates if self._shares(thread, vm, otherwise=False)]
        if len(sharing) == 1 or len(candidates) == 1:
            return (sharing or candidates)[0]
        self.guesses += 1
        before = [vm for vm in candidates if (vm.maker or 0) <= thread]
        return max(before or candidates, key=lambda vm: vm.maker or 0)
