"""Large results: their pieces are the same text as the encoder's, others are answered between them, nothing is lost."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import pytest
from pydantic import TypeAdapter

from tests.rpc.wire import PAGE, Wire, request, set_region
from vmmd.api.isa import AssembleResult, Line
from vmmd.api.memory import MemoryResult
from vmmd.api.memslots import RegionInfo, RegionListResult, RegionsResult, SlotLog
from vmmd.api.system import VmInfo
from vmmd.api.types import Result
from vmmd.rpc import handlers, results
from vmmd.rpc.results import encode_result, is_large, make_all, pieces


class Mixed(Result):
    """A result with everything that can be cut, and what cannot beside it."""

    first: int
    text: str
    table: dict[str, int]
    left_out: int = 5
    lines: list[Line]
    last: None = None


def log(slot: int, size: int) -> SlotLog:
    return SlotLog(slot=slot, guest_phys_addr=slot << 20, bitmap=bytes(range(256)) * (size // 256))


def region(slot: int) -> RegionInfo:
    return RegionInfo(slot=slot, flags=1, guest_phys_addr=slot << 13, memory_size=PAGE, userspace_addr=1 << 36)


LINES = [Line(address=4 * number, word=number, text=f"addi a0,a0,{number}") for number in range(1000)]

LARGE: dict[str, tuple[Any, Any]] = {
    "bytes": (MemoryResult, MemoryResult(data=bytes(range(256)) * 1000)),
    "bytes, one more than a multiple of 3": (MemoryResult, MemoryResult(data=b"\xff" * (3 * (48 << 10) + 1))),
    "a list of models": (RegionsResult, RegionsResult(generation=7, regions=tuple(map(region, range(1000))))),
    "a list alone": (list[Line], LINES),
    "an object": (AssembleResult, AssembleResult(code=b"ab", symbols={f'label "{n}" é': n for n in range(1000)})),
    "large ones among small ones": (
        RegionListResult,
        RegionListResult(
            generation=1,
            pause_ns=None,
            dirty=(log(0, 256), log(1, 200_000), log(2, 256), log(3, 0), log(4, 100_096), log(5, 100_096)),
        ),
    ),
    "many small ones": (
        RegionListResult,
        RegionListResult(generation=1, pause_ns=2, dirty=tuple(log(slot, 4096) for slot in range(200))),
    ),
    "all at once": (
        Mixed,
        Mixed(first=1, text='"é\n' * 50_000, table={str(number): number for number in range(500)}, lines=LINES),
    ),
    "a dictionary alone": (dict[str, Any], {f"key {number}": [number, {"a": None}] for number in range(1000)}),
}


@pytest.mark.parametrize(("kind", "result"), LARGE.values(), ids=list(LARGE))
def test_the_pieces_are_the_encoders_text_and_none_of_them_is_large(kind: Any, result: Any) -> None:
    adapter = TypeAdapter(kind)
    whole = adapter.dump_json(result, exclude_unset=True)
    parts = list(pieces(adapter, result))
    assert is_large(result)
    assert json.loads(b"".join(parts)) == json.loads(whole)
    assert b"".join(parts) == whole
    assert len(parts) > 3
    assert max(map(len, parts)) < 300_000


@pytest.mark.parametrize("result", [None, 12, "text", [], MemoryResult(data=bytes(5000)), {"pc": 0}])
def test_a_small_result_gives_way_to_nobody(result: Any) -> None:
    encoding = encode_result(TypeAdapter(Any), result, at_once=False)
    with pytest.raises(StopIteration):
        encoding.send(None)


@pytest.mark.parametrize("result", [LARGE["bytes"][1], LARGE["a list of models"][1]])
def test_within_a_hold_of_its_batch_a_large_result_gives_way_to_nobody(result: Any) -> None:
    encoding = encode_result(TypeAdapter(type(result)), result, at_once=True)
    with pytest.raises(StopIteration):
        encoding.send(None)
    making = make_all(str, range(1000), at_once=True)
    with pytest.raises(StopIteration):
        making.send(None)


async def test_a_pause_is_what_nobody_is_given_way_in(wire: Wire, vm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    at_once: list[bool] = []

    async def watched(adapter: TypeAdapter[Any], result: Any, **options: bool) -> bytes:
        at_once.append(options["at_once"])
        return await encode_result(adapter, result, **options)

    monkeypatch.setattr(handlers, "encode_result", watched)
    version = request("kvm.get_api_version")
    kick = request("vm.kick_all_running_vcpus", vm=vm, hold="h")
    resume = request("vm.resume_all_kicked_vcpus", vm=vm, hold="h")
    await wire.batch(version, kick, version, resume, version)
    assert at_once == [False, True, True, False, False]


async def test_what_is_being_written_is_written_to_its_end_whoever_goes() -> None:
    kind, result = LARGE["bytes"]
    encoding = asyncio.create_task(encode_result(TypeAdapter(kind), result, at_once=False))
    await asyncio.sleep(0)
    encoding.cancel()
    assert json.loads(await encoding)["data"] == base64.b64encode(result.data).decode()


async def test_things_are_made_in_order_while_others_have_their_turn() -> None:
    journal: list[Any] = []

    async def other() -> None:
        for turn in range(3):
            journal.append(f"turn {turn}")
            await asyncio.sleep(0)

    def make(number: int) -> int:
        journal.append(number)
        return number

    turns = asyncio.create_task(other())
    assert await make_all(make, range(200), at_once=False) == tuple(range(200))
    await turns
    assert [entry for entry in journal if isinstance(entry, int)] == list(range(200))
    assert journal.index("turn 1") < journal.index(199)


@pytest.mark.parametrize("asked", ["read", "regions", "list"])
async def test_another_call_is_answered_while_a_large_one_is_made(
    wire: Wire, vm: str, memory: str, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    monkeypatch.setattr(results, "_PIECE_BYTES", 3 << 8)
    changes = [
        {"slot": slot, "flags": 0, "guest_phys_addr": slot << 14, "memory_size": PAGE, "userspace_addr": memory}
        for slot in range(1, 401)
    ]
    large = {
        "read": request("vm.read_guest_memory", vm=vm, guest_phys_addr=0, length=2 * PAGE),
        "regions": request("vm.get_memory_regions", vm=vm),
        "list": request("vm.set_user_memory_region_list", vm=vm, regions=changes, dry_run=True),
    }
    monkeypatch.setattr(results, "_LARGE_BYTES", 1 << 10)
    if asked == "regions":
        await wire.call("vm.set_user_memory_region_list", vm=vm, regions=changes)
    order: list[str] = []

    async def ask(name: str, body: dict[str, Any]) -> None:
        Wire.result(await wire.send(body))
        order.append(name)

    async with asyncio.TaskGroup() as calls:
        calls.create_task(ask("large", large[asked]))
        calls.create_task(ask("small", request("kvm.get_api_version")))
    assert order == ["small", "large"]


async def test_the_dirty_log_of_the_largest_slot_is_had_in_parts_within_the_limit(wire: Wire, vm: str) -> None:
    pages = (1 << 31) - 1
    hva = (await wire.call("vm.map_host_memory", vm=vm, size=pages * PAGE, sparse=True))["userspace_addr"]
    await wire.send(set_region(vm, 0, 0, pages * PAGE, hva, flags=1))
    for page in (5, 1 << 20, pages - 1):
        await wire.call("vm.write_guest_memory", vm=vm, guest_phys_addr=page * PAGE, data="eA==")
    refused = await wire.send(request("vm.get_dirty_log", vm=vm, slot=0))
    assert refused["error"]["data"]["errno"] == "E2BIG"
    assert "num_pages" in refused["error"]["message"]
    most = 48_000 * 8
    for page in (5, 1 << 20, pages - 1):
        first = page // most * most
        part = min(most, -(-(pages - first) // 64) * 64)
        bits = base64.b64decode(
            (await wire.call("vm.get_dirty_log", vm=vm, slot=0, first_page=first, num_pages=part))["bitmap"]
        )
        assert [8 * at + bits[at].bit_length() - 1 for at in range(len(bits)) if bits[at]] == [page - first]


async def test_a_long_table_is_had_in_parts_within_the_limit(wire: Wire, vm: str, memory: str) -> None:
    changes = [
        {"slot": slot, "flags": 0, "guest_phys_addr": slot << 14, "memory_size": PAGE, "userspace_addr": memory}
        for slot in range(1, 1000)
    ]
    await wire.call("vm.set_user_memory_region_list", vm=vm, regions=changes)
    refused = await wire.send(request("vm.get_memory_regions", vm=vm))
    assert refused["error"]["data"]["errno"] == "E2BIG"
    slots: list[int] = []
    while len(slots) < 1000:
        table = await wire.call("vm.get_memory_regions", vm=vm, first=len(slots), count=400)
        slots += [region["slot"] for region in table["regions"]]
    assert slots == list(range(1000))


def test_vms_in_a_list_are_cut_too() -> None:
    info = VmInfo(
        vm="v", name="n", execution="parallel", state="created", vcpus=(0,), generation=1, dirty_log="bitmap", ended=()
    )
    adapter = TypeAdapter(list[VmInfo])
    assert b"".join(pieces(adapter, [info] * 100)) == adapter.dump_json([info] * 100)
