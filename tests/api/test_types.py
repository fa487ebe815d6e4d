"""The quantities of the wire: what they take, what they refuse, and how they are written."""

import json

import pytest
from pydantic import TypeAdapter, ValidationError

from vmmd.api.memslots import MemoryRegion, SetUserMemoryRegionParams
from vmmd.api.system import InfoResult
from vmmd.api.types import U32, Base64, Count, Hex64, MemFlags, U64In


@pytest.mark.parametrize("kind", [U64In, Hex64])
@pytest.mark.parametrize(
    ("given", "value"),
    [
        (0, 0),
        (4096, 4096),
        (2**64 - 1, 2**64 - 1),
        ("0x0", 0),
        ("0x1000", 4096),
        ("0XfF", 255),
        ("0xffffffffffffffff", 2**64 - 1),
    ],
)
def test_a_64_bit_quantity_is_an_integer_or_a_hexadecimal_string(kind: object, given: object, value: int) -> None:
    adapter: TypeAdapter[int] = TypeAdapter(kind)
    assert adapter.validate_python(given) == value
    assert adapter.dump_python(value, mode="json") == hex(value)
    assert adapter.dump_python(value) == value


@pytest.mark.parametrize(
    "given",
    [
        -1,
        2**64,
        True,
        False,
        1.0,
        "4096",
        "",
        "0x",
        "0x_1",
        " 0x1",
        "0x1 ",
        "-0x1",
        "0x10000000000000000",
        None,
        [],
        "٤",
    ],
)
def test_what_is_no_64_bit_quantity_is_refused(given: object) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(U64In).validate_python(given)


def test_the_bound_of_64_bits_is_named_without_rounding() -> None:
    with pytest.raises(ValidationError, match=r"at most 2\^64 - 1"):
        TypeAdapter(U64In).validate_python(2**64)
    with pytest.raises(ValidationError, match=r"at most 2\^64 - 1"):
        TypeAdapter(Count).validate_python(2**64)


@pytest.mark.parametrize("given", [-1, 2**32, True, 1.0, "1", "0x1", None])
def test_what_is_no_32_bit_number_is_refused(given: object) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(U32).validate_python(given)


@pytest.mark.parametrize(
    ("given", "value"),
    [
        (0, 0),
        (3, 3),
        (2**32 - 1, 2**32 - 1),
        ([], 0),
        (["KVM_MEM_READONLY"], 2),
        (["KVM_MEM_LOG_DIRTY_PAGES", "KVM_MEM_READONLY", "KVM_MEM_READONLY"], 3),
    ],
)
def test_flags_are_an_integer_or_names(given: object, value: int) -> None:
    assert TypeAdapter(MemFlags).validate_python(given) == value


@pytest.mark.parametrize("given", ["KVM_MEM_READONLY", ["KVM_MEM_GUEST_MEMFD"], [1], [["KVM_MEM_READONLY"]], -1, 2**32])
def test_what_are_no_flags_are_refused(given: object) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(MemFlags).validate_python(given)


@pytest.mark.parametrize("data", [b"", b"\0", b"\xff" * 5])
def test_bytes_are_base64_on_the_wire(data: bytes) -> None:
    adapter: TypeAdapter[bytes] = TypeAdapter(Base64)
    assert adapter.validate_python(json.loads(adapter.dump_json(data))) == data
    assert adapter.validate_python(data) == data


@pytest.mark.parametrize("given", ["A", "AA", "AA=", "AAAA\n", "AA-_", "é", 1, None, [0]])
def test_what_is_no_base64_is_refused(given: object) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(Base64).validate_python(given)


def test_parameters_refuse_unknown_members_and_results_ignore_them() -> None:
    with pytest.raises(ValidationError):
        SetUserMemoryRegionParams.model_validate(
            {"vm": "a", "slot": 0, "flags": 0, "guest_phys_addr": 0, "memory_size": 0, "userspace_addr": 0, "as_id": 0}
        )
    later = {"version": "9", "engine": "compiled", "pid": 1, "uptime_ms": 1, "limits": {}, "new": True}
    assert InfoResult.model_validate(later).version == "9"


def test_models_cannot_be_changed() -> None:
    region = MemoryRegion(slot=1, flags=0, guest_phys_addr=0, memory_size=4096, userspace_addr=0)
    with pytest.raises(ValidationError):
        region.slot = 2  # type: ignore[misc]
    assert region.slot == 1


def test_parameters_by_position_are_the_methods_own_and_then_its_options() -> None:
    assert SetUserMemoryRegionParams.positions() == (
        "vm",
        "slot",
        "flags",
        "guest_phys_addr",
        "memory_size",
        "userspace_addr",
        "hold",
        "wait_ms",
        "if_generation",
        "request_id",
        "deadline_ms",
    )


def test_parameters_go_over_the_wire_as_they_were_set() -> None:
    params = SetUserMemoryRegionParams(
        vm="a", slot=1, flags=1, guest_phys_addr=0x1000, memory_size=0x1000, userspace_addr=2**47, hold="h"
    )
    wire = params.wire()
    assert wire["userspace_addr"] == "0x800000000000"
    assert "wait_ms" not in wire
    assert SetUserMemoryRegionParams.model_validate(json.loads(json.dumps(wire))) == params
