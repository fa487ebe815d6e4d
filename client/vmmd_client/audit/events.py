"""What a recording tells, one event at a time, whoever recorded it.

Readers make these out of lines, and the audit takes them in the order in which they happened. An event holds what the
recording shows and nothing else: a slot call whose arguments the recorder did not print has no region, a call that it
did not see end has no end. Times are microseconds of the recording's own clock.
"""

from dataclasses import dataclass

from ..slots.memslots import Memslot


class TraceError(ValueError):
    """A file that is no recording: it names the file and what is wrong with it."""


@dataclass(slots=True, eq=False)
class SlotCall:
    """One KVM_SET_USER_MEMORY_REGION or KVM_SET_USER_MEMORY_REGION2; its outcome is filled in when it ends.

    Attributes:
        thread: the caller's thread id; 0 where the recorder did not print one.
        vm_fd: the VM's file descriptor.
        begin_us: when the call began.
        region: the call's arguments; None where the recording does not show them.
        line: the number of the line on which the call began, from 1.
        end_us: when it ended; None while it has not, or where the recording does not tell.
        errno: the error's name ("EEXIST"), or None.
    """

    thread: int
    vm_fd: int
    begin_us: int
    region: Memslot | None
    line: int = 0
    end_us: int | None = None
    errno: str | None = None

    @property
    def answered_us(self) -> int:
        """When the call ended, or when it began where the recording does not tell its end."""
        return self.begin_us if self.end_us is None else self.end_us


@dataclass(slots=True, eq=False)
class Run:
    """One KVM_RUN; its outcome is filled in when it ends.

    Attributes:
        thread: the vCPU thread's id.
        vcpu_fd: the vCPU's file descriptor.
        begin_us: when the call began.
        end_us: when it ended; None while it has not, or where the recording does not tell.
        errno: the error's name, or None.
        vcpu: the vCPU's id, where the recorder printed it beside the file descriptor.
    """

    thread: int
    vcpu_fd: int
    begin_us: int
    end_us: int | None = None
    errno: str | None = None
    vcpu: int | None = None

    @property
    def never_started(self) -> bool:
        """Whether the vCPU waited for its start-up IPI: KVM_RUN ends in EAGAIN, and no guest code ran in it."""
        return self.errno == "EAGAIN"


@dataclass(slots=True)
class SlotCallBegins:
    """A slot call begins."""

    call: SlotCall


@dataclass(slots=True)
class SlotCallEnds:
    """A slot call has ended; its outcome is known."""

    call: SlotCall


@dataclass(slots=True)
class RunBegins:
    """A thread enters KVM_RUN."""

    run: Run


@dataclass(slots=True)
class RunEnds:
    """A thread has left KVM_RUN, or its run was lost sight of."""

    run: Run


@dataclass(slots=True)
class FdMade:
    """A successful ioctl gave a new file descriptor.

    Attributes:
        thread: the caller's thread id.
        at_us: when it was given.
        kind: "vm" (KVM_CREATE_VM) or "vcpu" (KVM_CREATE_VCPU).
        parent_fd: the file descriptor that was asked.
        fd: the new one.
        vcpu: the vCPU's id, of a vCPU whose id the recording shows.
    """

    thread: int
    at_us: int
    kind: str
    parent_fd: int
    fd: int
    vcpu: int | None = None


@dataclass(slots=True)
class FdClosed:
    """A thread closed a file descriptor."""

    thread: int
    fd: int


@dataclass(slots=True)
class ThreadMade:
    """A thread made another, in its own process or, with a fork, in a new one."""

    thread: int
    child: int
    shares_fds: bool


@dataclass(slots=True)
class LogCall:
    """A call about dirty logs, of which recorders show no contents; the map is not touched by it."""

    thread: int
    vm_fd: int


@dataclass(slots=True)
class GuestMode:
    """A vCPU thread enters guest mode (kvm_entry) or leaves it (kvm_exit).

    Attributes:
        thread: the vCPU thread's id.
        at_us: when.
        entered: whether it entered.
    """

    thread: int
    at_us: int
    entered: bool


@dataclass(slots=True)
class Woken:
    """A vCPU thread woke up inside KVM_RUN (kvm_vcpu_wakeup).

    Attributes:
        thread: the vCPU thread's id.
        at_us: when it woke.
        slept_us: for how long it had slept or polled.
    """

    thread: int
    at_us: int
    slept_us: int


Event = (
    SlotCallBegins | SlotCallEnds | RunBegins | RunEnds | FdMade | FdClosed | ThreadMade | LogCall | GuestMode | Woken
)
