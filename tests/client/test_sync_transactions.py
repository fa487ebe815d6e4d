"""The synchronous twin's transactions where they are rare: inside a hold, and of a daemon that vanishes midway."""

from collections.abc import Iterator

import pytest

from vmmd_client import ConnectError, Outcome, PlanError, TransactionRefused
from vmmd_client.sync import Client, HttpTransport, Vm, connect
from vmmd_client.sync.local_daemon import local_daemon
from vmmd_client.wire.protocol import Question

PAGE = 4096


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with local_daemon() as url:
        yield url


@pytest.fixture
def vm(url: str) -> Iterator[Vm]:
    """A VM with slot 0 over pages 0 and 1, and host memory for more."""
    with connect(url) as vmmd:
        vm = vmmd.kvm.create_vm()
        memory = vm.map_host_memory(8 * PAGE)
        vm.set_user_memory_region(0, guest_phys_addr=0, memory_size=2 * PAGE, userspace_addr=memory)
        yield vm
        vm.destroy()


class Vanishing(HttpTransport):
    """A daemon that nobody reaches any more once it has changed a slot."""

    vanished = False

    def exchange(self, question: Question, timeout_s: float) -> bytes:
        if self.vanished:
            raise ConnectError("nobody listens")
        answer = super().exchange(question, timeout_s)
        self.vanished = b'"vm.set_user_memory_region"' in question.body
        return answer


def add_two(vm: Vm, memory: int, *, hold: bool = False) -> None:
    """Put slots over pages 4 and 6, where they are not yet: what nobody needs to be held for."""
    with vm.transaction(hold=hold) as change:
        for page in (4, 6):
            if not any(slot.guest_phys_addr == page * PAGE for slot in change.slots.values()):
                change.create(guest_phys_addr=page * PAGE, memory_size=PAGE, userspace_addr=memory + page * PAGE)


def test_a_daemon_that_vanishes_between_two_steps_leaves_a_part_and_a_new_transaction_does_the_rest(url: str, vm: Vm):
    memory = vm.get_memory_regions().slots[0].userspace_addr
    stands = pytest.raises(TransactionRefused, match=r"stand, .*a new transaction .*hold=True")
    with Client(Vanishing(url), attempts=1) as vmmd, stands as caught:
        add_two(vmmd.vm(vm.id), memory)
    assert (caught.value.outcome, caught.value.step, caught.value.rolled_back) == (Outcome.PART_DONE, 1, False)
    assert sorted(vm.get_memory_regions().slots) == [0, 1]
    add_two(vm, memory)
    assert sorted(vm.get_memory_regions().slots) == [0, 1, 2]


def test_in_a_hold_a_daemon_that_vanishes_leaves_no_part(url: str, vm: Vm):
    memory = vm.get_memory_regions().slots[0].userspace_addr
    with Client(Vanishing(url), attempts=1) as vmmd:
        add_two(vmmd.vm(vm.id), memory, hold=True)
    assert sorted(vm.get_memory_regions().slots) == [0, 1, 2]


def test_a_transaction_inside_a_hold_is_done_when_the_hold_ends(vm: Vm):
    with vm.hold() as hold:
        with hold.transaction() as change:
            first, second = change.split(0, PAGE)
        vm.write_guest_memory(PAGE, b"x", hold=hold.name)
    assert vm.get_memory_regions().slots == {first.slot: first, second.slot: second}
    assert change.result.generation == hold.resume.generation


def merge_behind_another(vm: Vm, other: Vm) -> None:
    """Split slot 0 and merge it again in one hold, while somebody else who knows the hold's name deletes a half."""
    with vm.hold() as hold:
        with hold.transaction() as change:
            change.split(0, PAGE)
        with hold.transaction() as change:
            change.merge(0, 1)
            other.set_user_memory_region(1, guest_phys_addr=0, memory_size=0, userspace_addr=0, hold=hold.name)


def test_a_transaction_inside_a_hold_that_others_came_before_undoes_the_hold(url: str, vm: Vm):
    before = vm.get_memory_regions().slots
    with connect(url) as vmmd, pytest.raises(TransactionRefused, match="ESTALE") as caught:
        merge_behind_another(vm, vmmd.vm(vm.id))
    assert caught.value.outcome is Outcome.NOTHING_DONE
    assert vm.get_memory_regions().slots == before


def test_a_change_that_cannot_be_meant_says_that_nothing_was_done(vm: Vm):
    for wrong in (lambda: vm.transaction().__enter__().delete(9), lambda: vm.hold().__enter__()):
        with pytest.raises(PlanError) as caught, vm.transaction():
            wrong()
        assert caught.value.outcome is Outcome.NOTHING_DONE
