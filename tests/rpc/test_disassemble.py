"""isa.disassemble on the wire: lines and limits."""

import base64
import json

import pytest

from tests.rpc.sockets import connected, serving
from tests.rpc.wire import REPLY_BYTES, Failed, Wire, request
from vmmd.api.codes import INVALID_PARAMS
from vmmd.api.isa import MAX_CODE_BYTES


def base64_of(code: bytes) -> str:
    return base64.b64encode(code).decode()


async def test_what_was_assembled_is_disassembled_and_assembled_again(wire: Wire) -> None:
    source = "start: beqz a0, start; j start; csrr a0, mhartid; .word 0; .byte 1"
    code = (await wire.call("isa.assemble", source=source, origin="0x1000"))["code"]
    lines = await wire.call("isa.disassemble", code=code, origin="0x1000")
    assert lines == [
        {"address": "0x1000", "word": "0x50063", "text": "beqz a0,.+0 # 0x1000"},
        {"address": "0x1004", "word": "0xffdff06f", "text": "j 0x1000"},
        {"address": "0x1008", "word": "0xf1402573", "text": "csrr a0,mhartid"},
        {"address": "0x100c", "word": "0x0", "text": ".word 0x00000000"},
        {"address": "0x1010", "word": "0x1", "text": ".byte 0x01"},
    ]
    again = "\n".join(line["text"] for line in lines)
    assert (await wire.call("isa.assemble", source=again, origin="0x1000"))["code"] == code


async def test_the_origin_is_0_where_none_is_given_and_no_code_is_no_line(wire: Wire) -> None:
    assert await wire.call("isa.disassemble", code="EwAAAA==") == [{"address": "0x0", "word": "0x13", "text": "nop"}]
    assert await wire.call("isa.disassemble", code="") == []


async def test_code_behind_the_last_address_is_refused(wire: Wire) -> None:
    with pytest.raises(Failed) as failed:
        await wire.call("isa.disassemble", code=base64_of(bytes(8)), origin="0xfffffffffffffffc")
    assert failed.value.data == {"errno": "EINVAL"}
    assert failed.value.message == "8 bytes of code do not fit between 0xfffffffffffffffc and the last address"


async def test_more_code_than_one_call_takes_is_refused_with_the_limit(wire: Wire) -> None:
    with pytest.raises(Failed) as failed:
        await wire.call("isa.disassemble", code=base64_of(bytes(MAX_CODE_BYTES + 1)))
    assert failed.value.code == INVALID_PARAMS
    assert f"code: has more than {MAX_CODE_BYTES} bytes" in failed.value.message


async def test_lines_that_do_not_fit_in_the_reply_are_refused_before_they_are_made(wire: Wire) -> None:
    with pytest.raises(Failed) as failed:
        await wire.call("isa.disassemble", code=base64_of(bytes(REPLY_BYTES // 16)))
    assert failed.value.data == {"errno": "E2BIG"}
    assert "limits.reply_bytes" in failed.value.message


async def test_the_longest_lines_fit_wherever_they_are_not_refused(wire: Wire) -> None:
    last = (1 << 64) - 1
    longest = (await wire.call("isa.assemble", source="bgeu s10, s11, . - 4096"))["code"]
    code = base64.b64decode(longest) * (REPLY_BYTES // 128)
    lines = await wire.call("isa.disassemble", code=base64_of(code), origin=hex(last + 1 - len(code)))
    assert len(lines) == len(code) // 4
    assert lines[-1]["text"] == "bgeu s10,s11,.-4096 # 0xffffffffffffeffc"


async def test_while_much_code_is_disassembled_other_calls_are_answered(wire: Wire) -> None:
    code = base64_of(b"\x13\0\0\0" * (REPLY_BYTES // 128))
    async with serving(wire) as client, connected(client) as socket:
        await socket.socket.send_str(json.dumps(request("isa.disassemble", code=code)))
        await socket.socket.send_str(json.dumps(request("kvm.get_api_version")))
        answered = [json.loads((await socket.socket.receive(timeout=20)).data)["id"] for _ in range(2)]
    assert answered == ["kvm.get_api_version", "isa.disassemble"]


async def test_others_are_answered_too_while_a_batch_that_holds_a_vm_disassembles(wire: Wire, vm: str) -> None:
    batch = [
        request("vm.kick_all_running_vcpus", vm=vm, hold="mine"),
        request("isa.disassemble", code=base64_of(b"\x13\0\0\0" * (REPLY_BYTES // 256))),
        request("vm.resume_all_kicked_vcpus", vm=vm, hold="mine"),
    ]
    async with serving(wire) as client, connected(client) as socket:
        await socket.socket.send_str(json.dumps(batch))
        await socket.socket.send_str(json.dumps(request("kvm.get_api_version")))
        first, second = [json.loads((await socket.socket.receive(timeout=20)).data) for _ in range(2)]
    assert first["id"] == "kvm.get_api_version"
    assert all("result" in answer for answer in second)
