"""The host address space: mapping, unmapping in parts, what it costs, and when it goes."""

from __future__ import annotations

import random

import pytest

from tests.memory.plain import pages, table
from vmmd.memory import access
from vmmd.memory.errors import Refused
from vmmd.memory.host import PIECE_RECORD, HostSpace, Ledger, touch
from vmmd.memory.limits import PAGE_SIZE, USERSPACE_END
from vmmd.memory.memslots import Memslots
from vmmd.memory.view import View

MIB = 1 << 20


def ledger(limit: int = 1 << 40) -> Ledger:
    return Ledger(limit)


def view_of(host: HostSpace) -> View:
    return View(Memslots(), host)


def mapped(*sizes: int) -> tuple[HostSpace, list[int]]:
    host, addresses, account = HostSpace(), [], ledger()
    for size in sizes:
        host, address = host.with_mapping(size, account)
        addresses.append(address)
    return host, addresses


def test_a_mapping_is_page_aligned_zeroed_and_in_userspace() -> None:
    host, (address,) = mapped(3 * PAGE_SIZE)
    assert address % PAGE_SIZE == 0
    assert 0 < address <= USERSPACE_END - 3 * PAGE_SIZE
    assert access.read_host(view_of(host), address, 3 * PAGE_SIZE) == bytes(3 * PAGE_SIZE)


def test_mapping_makes_a_new_space_and_leaves_the_old_one_as_it_was() -> None:
    before, (first,) = mapped(PAGE_SIZE)
    after, second = before.with_mapping(PAGE_SIZE, ledger())
    assert before.find(second) is None
    assert after.find(first) is before.find(first)
    assert [piece.userspace_addr for piece in after.pieces] == sorted([first, second])


@pytest.mark.parametrize("size", [0, 1, PAGE_SIZE - 1, PAGE_SIZE + 1, -PAGE_SIZE])
def test_a_size_of_no_whole_pages_is_refused_and_nothing_is_charged(size: int) -> None:
    account = ledger()
    with pytest.raises(Refused, match="EINVAL: size"):
        HostSpace().with_mapping(size, account)
    assert account.used_bytes == 0


def test_an_overrun_of_any_mapping_meets_a_hole() -> None:
    host, (first, second, _) = mapped(4 * MIB, PAGE_SIZE, 4 * MIB)
    host, _ = host.without(first, PAGE_SIZE)
    host, _ = host.without(second, PAGE_SIZE)
    account = ledger()
    for size in (PAGE_SIZE, 2 * MIB, 2 * MIB - PAGE_SIZE, 6 * MIB, PAGE_SIZE):
        host, _ = host.with_mapping(size, account)
    for before, after in zip(host.pieces, host.pieces[1:], strict=False):
        assert before.end < after.userspace_addr or before.mapping is after.mapping


def test_an_address_space_that_is_full_is_enomem_and_nothing_is_charged() -> None:
    account = ledger(1 << 62)
    with pytest.raises(Refused, match="ENOMEM"):
        HostSpace().with_mapping(USERSPACE_END, account)
    assert account.used_bytes == 0


@pytest.mark.parametrize(
    ("start", "size"),
    [(0x1001, PAGE_SIZE), (0x1000, 1), (0x1000, 0), (0x1000, -PAGE_SIZE), (USERSPACE_END - PAGE_SIZE, 2 * PAGE_SIZE)],
)
def test_a_range_that_cannot_be_unmapped_is_refused(start: int, size: int) -> None:
    host, _ = mapped(PAGE_SIZE)
    with pytest.raises(Refused, match="EINVAL"):
        host.without(start, size)


def test_unmapping_what_is_not_mapped_is_none_the_worse() -> None:
    host, (address,) = mapped(PAGE_SIZE)
    after, gone = host.without(address + PAGE_SIZE, PAGE_SIZE)
    assert after == host
    assert gone == ()


def test_unmapping_the_middle_leaves_both_ends_with_their_bytes() -> None:
    host, (address,) = mapped(4 * PAGE_SIZE)
    for page in range(4):
        access.write_host(view_of(host), address + page * PAGE_SIZE, bytes([page + 1]))
    after, (gone,) = host.without(address + PAGE_SIZE, 2 * PAGE_SIZE)
    view = view_of(after)
    assert (gone.userspace_addr, gone.size) == (address + PAGE_SIZE, 2 * PAGE_SIZE)
    assert access.read_host(view, address, 1) == b"\x01"
    assert access.read_host(view, address + 3 * PAGE_SIZE, 1) == b"\x04"
    for page in (1, 2):
        with pytest.raises(Refused, match="EFAULT"):
            access.read_host(view, address + page * PAGE_SIZE, 1)


def test_an_old_space_still_reaches_what_a_new_one_unmapped() -> None:
    host, (address,) = mapped(PAGE_SIZE)
    access.write_host(view_of(host), address, b"kept")
    after, _ = host.without(address, PAGE_SIZE)
    assert after.pieces == ()
    assert access.read_host(view_of(host), address, 4) == b"kept"


def test_pages_that_were_discarded_read_zeroes_when_their_mapping_is_read_by_an_old_view() -> None:
    host, (address,) = mapped(2 * PAGE_SIZE)
    access.write_host(view_of(host), address, b"secret")
    _, (gone,) = host.without(address, PAGE_SIZE)
    gone.discard()
    assert access.read_host(view_of(host), address, 6) == bytes(6)


def page_at(model: dict[int, int], page: int) -> bytes | None:
    return model[page].to_bytes(8, "little") if page in model else None


def read_page(view: View, page: int) -> bytes | None:
    try:
        return access.read_host(view, page * PAGE_SIZE + 16, 8)
    except Refused:
        return None


@pytest.mark.usefixtures("reference_counts_alone")
def test_random_maps_and_unmaps_agree_with_a_dict_of_pages_and_the_ledger_with_its_length() -> None:
    rng = random.Random(4)
    account = ledger()
    host, model, low = HostSpace(), dict[int, int](), HostSpace().with_mapping(PAGE_SIZE, ledger())[1] // PAGE_SIZE
    high, stamp = low + 1, 0
    for _ in range(300):
        if rng.random() < 0.5 or not model:
            npages = rng.randrange(1, 9) if rng.random() < 0.9 else 1024
            host, address = host.with_mapping(npages * PAGE_SIZE, account)
            first = address // PAGE_SIZE
            assert not any(page in model for page in range(first, first + npages))
            for page in range(first, first + npages):
                stamp += 1
                model[page] = stamp
                access.write_host(view_of(host), page * PAGE_SIZE + 16, stamp.to_bytes(8, "little"))
            high = max(high, first + npages)
        else:
            first, npages = rng.choice(tuple(model)) - rng.randrange(4), rng.randrange(1, 600)
            host, gone = host.without(first * PAGE_SIZE, npages * PAGE_SIZE)
            for page in range(first, first + npages):
                model.pop(page, None)
            still = {id(piece.mapping) for piece in host.pieces}
            for piece in gone:
                if id(piece.mapping) in still:
                    piece.discard()
            del gone, piece
        view = view_of(host)
        for page in [rng.randrange(low, high) for _ in range(20)] + rng.sample(sorted(model), min(len(model), 20)):
            assert read_page(view, page) == page_at(model, page)
        del view
        assert account.used_bytes == len(model) * PAGE_SIZE
    del host
    assert account.used_bytes == 0


@pytest.mark.usefixtures("reference_counts_alone")
def test_memory_is_given_back_with_the_last_reference_and_not_before() -> None:
    account = ledger()
    host, address = HostSpace().with_mapping(MIB, account)
    view = view_of(host)
    host, gone = host.without(address, MIB)
    assert account.used_bytes == MIB
    del gone
    assert account.used_bytes == MIB
    assert access.read_host(view, address, 1) == b"\0"
    del view
    assert account.used_bytes == 0


@pytest.fixture
def daemon_ledger() -> Ledger:
    return ledger(4 * MIB)


@pytest.mark.usefixtures("reference_counts_alone")
def test_a_vms_ledger_charges_and_refunds_its_parents_too(daemon_ledger: Ledger) -> None:
    own = Ledger(2 * MIB, daemon_ledger)
    host, address = HostSpace().with_mapping(MIB, own)
    assert (own.used_bytes, daemon_ledger.used_bytes) == (MIB, MIB)
    host, (part,) = host.without(address, PAGE_SIZE)
    part.discard()
    assert (own.used_bytes, daemon_ledger.used_bytes) == (MIB - PAGE_SIZE, MIB - PAGE_SIZE)
    del host, part
    assert (own.used_bytes, daemon_ledger.used_bytes) == (0, 0)


def test_what_passes_the_own_limit_is_enomem_and_charges_nobody(daemon_ledger: Ledger) -> None:
    own = Ledger(2 * MIB, daemon_ledger)
    own.charge(MIB)
    with pytest.raises(Refused, match=r"ENOMEM: 1048577 bytes more than the 1048576 in use exceed .* 2097152 bytes"):
        own.charge(MIB + 1)
    assert (own.used_bytes, daemon_ledger.used_bytes) == (MIB, MIB)


def test_what_passes_the_parents_limit_is_enomem_and_charges_nobody(daemon_ledger: Ledger) -> None:
    own, other = Ledger(8 * MIB, daemon_ledger), Ledger(8 * MIB, daemon_ledger)
    other.charge(3 * MIB)
    with pytest.raises(Refused, match="ENOMEM"):
        own.charge(MIB + 1)
    assert (own.used_bytes, daemon_ledger.used_bytes) == (0, 3 * MIB)
    own.charge(MIB)
    assert daemon_ledger.used_bytes == 4 * MIB


def test_what_the_host_cannot_give_is_enomem_and_is_not_charged() -> None:
    account = ledger(1 << 62)
    with pytest.raises(Refused, match="ENOMEM: the host has no"):
        HostSpace().with_mapping((1 << 47) - (1 << 37), account)
    assert account.used_bytes == 0


def test_the_packed_records_follow_every_map_and_unmap() -> None:
    rng = random.Random(6)
    account = ledger()
    host = HostSpace()
    for _ in range(200):
        if rng.random() < 0.5 or not host.pieces:
            host, _ = host.with_mapping(rng.randrange(1, 1200) * PAGE_SIZE, account, sparse=rng.random() < 0.3)
        else:
            start = rng.choice(host.pieces).userspace_addr + rng.randrange(-3, 4) * PAGE_SIZE
            host, _ = host.without(start, rng.choice([1, 2, 3000]) * PAGE_SIZE)
        packed = list(PIECE_RECORD.iter_unpack(host.records))
        assert packed == [
            (piece.userspace_addr, piece.size, piece.host_address, piece.mapping.touched, piece.offset)
            for piece in host.pieces
        ]


def lowest_place(host: HostSpace, size: int) -> int:
    """Where a mapping goes, by a look at every gap: the first 2 MiB border with room and a free page on either side."""
    at = HostSpace().with_mapping(PAGE_SIZE, ledger())[1]
    for piece in host.pieces:
        if at + size < piece.userspace_addr:
            break
        at = piece.end + 2 * MIB & -2 * MIB
    return at


def test_a_mapping_goes_to_the_lowest_gap_that_holds_it_whatever_was_unmapped_before() -> None:
    rng = random.Random(8)
    account = ledger()
    host = HostSpace()
    for _ in range(600):
        if rng.random() < 0.6 or not host.pieces:
            size = rng.choice([1, 1, 2, 511, 512, 513, 2000]) * PAGE_SIZE
            place = lowest_place(host, size)
            host, at = host.with_mapping(size, account)
            assert at == place
        else:
            piece = rng.choice(host.pieces)
            start = piece.userspace_addr + rng.randrange(piece.size // PAGE_SIZE) * PAGE_SIZE
            host, _ = host.without(start, rng.choice([1, 600, 5000]) * PAGE_SIZE)


@pytest.mark.usefixtures("reference_counts_alone")
def test_a_sparse_mapping_takes_addresses_until_the_last_of_it_goes_and_an_ordinary_one_none() -> None:
    addresses = Ledger(8 * MIB, setting="limits.so_many")
    account = Ledger(64 * MIB, addresses=addresses)
    host, first = HostSpace().with_mapping(6 * MIB, account, sparse=True)
    host, _ = host.with_mapping(16 * MIB, account)
    assert (addresses.used_bytes, account.used_bytes) == (6 * MIB, 16 * MIB)
    with pytest.raises(Refused, match=r"ENOMEM: .* the limit of 8388608 bytes \(limits.so_many\)"):
        HostSpace().with_mapping(3 * MIB, account, sparse=True)
    assert (addresses.used_bytes, account.used_bytes) == (6 * MIB, 16 * MIB)
    host, _ = host.without(first, 5 * MIB)
    assert addresses.used_bytes == 6 * MIB
    host, gone = host.without(first, 6 * MIB)
    del gone, _
    assert addresses.used_bytes == 0


def sparse_pieces(account: Ledger, *sizes: int) -> tuple[HostSpace, list[int]]:
    host, addresses = HostSpace(), []
    for size in sizes:
        host, address = host.with_mapping(size, account, sparse=True)
        addresses.append(address)
    return host, addresses


def test_pages_of_several_mappings_are_charged_all_or_none() -> None:
    account = Ledger(16 * MIB)
    host, (first, second) = sparse_pieces(account, 12 * MIB, 12 * MIB)
    one, two = host.find(first), host.find(second)
    assert one is not None
    assert two is not None
    with pytest.raises(Refused, match="ENOMEM"):
        touch([(one, 0, 12 * MIB), (two, 0, 8 * MIB)])
    assert account.used_bytes == 0
    # What is asked for twice is charged once, so this is the limit to the byte.
    touch([(one, 0, 12 * MIB), (two, 0, 4 * MIB), (one, 5, 1), (two, 3 * MIB, MIB)])
    assert account.used_bytes == 16 * MIB


def test_a_host_write_that_leaves_the_mapping_charges_nothing() -> None:
    account = ledger()
    host, (address,) = sparse_pieces(account, 4 * PAGE_SIZE)
    with pytest.raises(Refused, match="EFAULT"):
        access.write_host(view_of(host), address, bytes(5 * PAGE_SIZE))
    assert account.used_bytes == 0


def test_a_guest_write_that_leaves_its_slots_charges_nothing() -> None:
    account = ledger()
    host, (address,) = sparse_pieces(account, 4 * PAGE_SIZE)
    view = View(table(pages(0, 0, 4, hva=address)), host)
    with pytest.raises(Refused, match="EFAULT"):
        access.write_guest(view, PAGE_SIZE, bytes(4 * PAGE_SIZE))
    assert account.used_bytes == 0


def test_a_guest_write_over_two_mappings_that_passes_the_limit_charges_nothing() -> None:
    account = Ledger(6 * PAGE_SIZE)
    host, (first, second) = sparse_pieces(account, 4 * PAGE_SIZE, 4 * PAGE_SIZE)
    view = View(table(pages(0, 0, 4, hva=first), pages(1, 4, 4, hva=second)), host)
    with pytest.raises(Refused, match="ENOMEM"):
        access.write_guest(view, 0, bytes(8 * PAGE_SIZE))
    assert account.used_bytes == 0
    access.write_guest(view, 0, bytes(6 * PAGE_SIZE))
    assert account.used_bytes == 6 * PAGE_SIZE
