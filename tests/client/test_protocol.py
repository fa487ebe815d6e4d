import json
from typing import Any

import pytest

from vmmd_client import ProtocolError, RpcError, calls
from vmmd_client.wire.protocol import Dialogue, Success


def reply(*entries: dict[str, Any]) -> bytes:
    return json.dumps([{"jsonrpc": "2.0", **entry} for entry in entries]).encode()


def test_a_call_is_one_request_with_parameters_by_name():
    question = Dialogue().ask(calls.check_extension("KVM_CAP_NR_MEMSLOTS"))
    assert json.loads(question.body) == {
        "jsonrpc": "2.0",
        "id": question.ids[0],
        "method": "kvm.check_extension",
        "params": {"extension": "KVM_CAP_NR_MEMSLOTS"},
    }


def test_a_parameter_that_was_not_given_is_not_sent():
    assert calls.create_vm(None).params == {}


def test_bytes_go_as_base64():
    assert calls.write_host_memory("1", 0x1000, b"\x00\xff").params["data"] == "AP8="


def test_no_two_calls_of_a_dialogue_share_an_id():
    dialogue = Dialogue()
    one, batch = dialogue.ask(calls.get_info()), dialogue.ask_batch([calls.get_info(), calls.list_vms()])
    assert len({*one.ids, *batch.ids}) == 3


def test_the_answers_of_a_batch_are_matched_by_id_whatever_their_order():
    question = Dialogue().ask_batch([calls.get_api_version(), calls.get_api_version()])
    first, second = question.ids
    body = reply({"id": second, "result": 2}, {"id": first, "result": 1})
    assert question.outcomes(body) == [Success(1), Success(2)]


def test_an_empty_batch_is_refused():
    with pytest.raises(ValueError, match="at least one call"):
        Dialogue().ask_batch([])


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"<html>", "no JSON"),
        (b"\xff", "no JSON"),
        (b"[]", "list"),
        (b"12", "JSON-RPC"),
        (b'{"jsonrpc":"1.0","id":1,"result":12}', "JSON-RPC"),
        (b'{"jsonrpc":"2.0","id":1}', "JSON-RPC"),
        (b'{"jsonrpc":"2.0","id":1,"result":12,"error":null}', "JSON-RPC"),
        (b'{"jsonrpc":"2.0","id":2,"result":12}', "id 2"),
        (b'{"jsonrpc":"2.0","id":"1","result":12}', "id '1'"),
        (b'{"jsonrpc":"2.0","id":[1],"result":12}', "id"),
        (b'{"jsonrpc":"2.0","id":1,"error":{"code":"x","message":"y"}}', "error object"),
    ],
)
def test_what_is_no_answer_to_the_call_is_a_protocol_error(body: bytes, why: str):
    question = Dialogue().ask(calls.get_api_version())
    assert question.ids == (1,)
    with pytest.raises(ProtocolError, match=why):
        question.outcomes(body)


@pytest.mark.parametrize(
    ("entries", "why"),
    [
        ([{"id": 1, "result": 12}], "no entry"),
        ([{"id": 1, "result": 12}, {"id": 1, "result": 12}], "id 1"),
        ([{"id": 1, "result": 12}, {"id": 9, "result": 12}], "id 9"),
        ([{"id": 1, "result": 12}, {"id": None, "error": {"code": -32600, "message": "?"}}], "id None"),
    ],
)
def test_a_batch_whose_answers_do_not_fit_is_a_protocol_error(entries: list[dict[str, Any]], why: str):
    question = Dialogue().ask_batch([calls.get_api_version(), calls.get_api_version()])
    with pytest.raises(ProtocolError, match=why):
        question.outcomes(reply(*entries))


def test_a_batch_that_is_refused_as_a_whole_raises_that_error():
    question = Dialogue().ask_batch([calls.get_api_version()])
    body = b'{"jsonrpc":"2.0","id":null,"error":{"code":-32600,"message":"the batch is too long"}}'
    with pytest.raises(RpcError, match="too long") as caught:
        question.outcomes(body)
    assert caught.value.code == -32600


def test_a_result_of_another_shape_is_a_protocol_error_that_names_the_method():
    with pytest.raises(ProtocolError, match=r"vm\.map_host_memory"):
        calls.map_host_memory("1", 4096, None).value({"address": "0x1000"})


def test_a_result_may_have_more_fields_than_are_known():
    assert calls.map_host_memory("1", 4096, None).value({"userspace_addr": "0x1000", "node": 3}) == 0x1000


def test_the_time_that_the_daemon_is_asked_to_wait_is_allowed_for():
    assert calls.kick_all_running_vcpus("1", "h", wait_ms=2_500).allowed_wait_s == 2.5
    assert calls.run("1", 0, timeout_ms=500).allowed_wait_s == 0.5
    assert calls.get_info().allowed_wait_s == 0


@pytest.mark.parametrize(
    ("params", "wait_s"),
    [
        ({}, 0.0),
        ({"wait_ms": 500, "timeout_ms": 250}, 0.75),
        ({"deadline_ms": 2_000}, 2.0),
        ({"deadline_ms": 100, "wait_ms": 500}, 0.1),
        ({"deadline_ms": "soon", "wait_ms": 500}, 0.5),
    ],
)
def test_a_calls_own_times_are_allowed_and_a_deadline_bounds_them_all(params: dict[str, object], wait_s: float):
    assert calls.raw("vcpu.run", params).allowed_wait_s == wait_s
