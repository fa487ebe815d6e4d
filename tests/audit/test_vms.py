"""Which VM a number means: several of them, in one process or many, closed and opened again."""

from __future__ import annotations

from tests.audit.lines import UNFINISHED, findings, line, run, slot


def vm(seconds: float, fd: int, *, thread: int = 10) -> str:
    return line(seconds, f"ioctl(3, KVM_CREATE_VM, 0) = {fd}", thread=thread)


def vcpu(seconds: float, vm_fd: int, fd: int, *, thread: int = 10) -> str:
    return line(seconds, f"ioctl({vm_fd}, KVM_CREATE_VCPU, 0) = {fd}", thread=thread)


REMADE = (slot(2.0, 0, 0, 0), slot(2.001, 0, 0, 4096))


def test_a_vcpu_of_another_vm_is_not_exposed() -> None:
    two = [vm(0, 8), vm(0, 20), vcpu(0, 8, 9), vcpu(0, 20, 21), slot(0.5, 0, 0, 4096)]
    found, _ = findings([*two, run(1.0, fd=21, tail=UNFINISHED), *REMADE])
    assert [update.vcpus_inside for update in found.vms[0].updates] == [(), ()]
    found, _ = findings([*two, run(1.0, fd=9, tail=UNFINISHED), *REMADE])
    assert found.vms[0].updates[-1].vcpus_inside == (11,)


def test_a_vm_that_was_closed_leaves_its_number_to_the_next() -> None:
    found, _ = findings(
        [vm(0, 8), slot(0.1, 0, 0, 4096), line(0.2, "close(8) = 0", thread=10), vm(0.3, 8), slot(0.4, 0, 0, 8192)]
    )
    assert [(one.vm.fd, len(one.updates), one.needs_hold) for one in found.vms] == [(8, 1, 0), (8, 1, 0)]


def test_a_number_that_is_given_anew_was_closed_though_nobody_recorded_it() -> None:
    found, _ = findings([vm(0, 8), slot(0.1, 0, 0, 4096), vm(0.3, 8), slot(0.4, 0, 0, 8192)])
    assert len(found.vms) == 2
    found, _ = findings([vm(0, 8), slot(0.1, 0, 0, 4096), vm(0.2, 7), vcpu(0.3, 7, 8), run(0.4, fd=8)])
    assert [sorted(one.lanes) for one in found.vms] == [[], [11]]


def test_two_processes_with_the_same_numbers_are_two_vms() -> None:
    lines = [
        vm(0, 8, thread=100),
        vm(0, 8, thread=200),
        vcpu(0, 8, 9, thread=100),
        vcpu(0, 8, 9, thread=200),
        slot(0.5, 0, 0, 4096, thread=100),
        slot(0.5, 0, 0, 4096, thread=200),
        run(1.0, fd=9, thread=201, tail=UNFINISHED),
        slot(2.0, 0, 0, 0, thread=100),
        slot(2.001, 0, 0, 4096, thread=100),
        slot(3.0, 0, 0, 0, thread=200),
        slot(3.001, 0, 0, 4096, thread=200),
    ]
    found, _ = findings(lines)
    assert [one.exposed for one in found.vms] == [0, 1]
    assert found.guesses == 1


def test_the_clone_family_tells_processes_apart_without_a_guess() -> None:
    lines = [
        line(0, "clone(child_stack=NULL, flags=SIGCHLD) = 200", thread=100),
        line(0, "clone3({flags=CLONE_VM|CLONE_FILES|CLONE_THREAD}, 88) = 300", thread=100),
        vm(0.1, 8, thread=100),
        vm(0.1, 8, thread=200),
        vcpu(0.1, 8, 9, thread=100),
        vcpu(0.1, 8, 9, thread=200),
        slot(0.5, 0, 0, 4096, thread=100),
        run(1.0, fd=9, thread=300, tail=UNFINISHED),
        slot(2.0, 0, 0, 0, thread=100),
        slot(2.001, 0, 0, 4096, thread=100),
    ]
    found, _ = findings(lines)
    assert found.vms[0].updates[-1].vcpus_inside == (300,)
    assert found.guesses == 0


def test_a_slot_that_nobody_made_says_that_the_recording_began_later() -> None:
    found, _ = findings([slot(1.0, 3, 0, 0)])
    assert found.vms[0].vm.unseen_slots == 1
