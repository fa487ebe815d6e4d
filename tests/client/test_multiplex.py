import json
from typing import Any

import pytest

from vmmd_client import ProtocolError, calls
from vmmd_client.wire.multiplex import Waiters
from vmmd_client.wire.protocol import Dialogue, Question


@pytest.fixture
def questions() -> list[Question]:
    dialogue = Dialogue()
    return [dialogue.ask(calls.get_info()), dialogue.ask_batch([calls.list_vms(), calls.get_info()])]


@pytest.fixture
def waiters(questions: list[Question]) -> Waiters[str]:
    waiters: Waiters[str] = Waiters()
    waiters.add(questions[0], "one")
    waiters.add(questions[1], "batch")
    return waiters


def text(answer: Any) -> bytes:
    return json.dumps(answer).encode()


def test_an_answer_finds_its_waiter_by_id_in_any_order(waiters: Waiters[str], questions: list[Question]):
    second = questions[1].ids[1]
    assert waiters.whose(text([{"id": second, "result": 1}])) == "batch"
    assert waiters.whose(text({"id": questions[0].ids[0], "result": 1})) == "one"


def test_the_answer_of_one_who_has_gone_is_nobodys(waiters: Waiters[str], questions: list[Question]):
    waiters.remove(questions[0])
    waiters.remove(questions[0])
    assert waiters.whose(text({"id": questions[0].ids[0], "result": 1})) is None


def test_a_notification_is_nobodys_answer(waiters: Waiters[str]):
    assert waiters.whose(text({"method": "event", "params": {}})) is None


def test_an_error_without_an_id_is_the_only_ones_who_waits(waiters: Waiters[str], questions: list[Question]):
    refusal = text({"id": None, "error": {"code": -32600, "message": "too long"}})
    with pytest.raises(ProtocolError, match="names no call, and 2 wait"):
        waiters.whose(refusal)
    waiters.remove(questions[0])
    assert waiters.whose(refusal) == "batch"


@pytest.mark.parametrize("message", [b"<html>", b"5", b"[]", b'"x"', b"[[]]"])
def test_what_is_no_message_of_json_rpc_is_an_error(waiters: Waiters[str], message: bytes):
    with pytest.raises(ProtocolError, match=r"no JSON|not of JSON-RPC"):
        waiters.whose(message)


def test_all_who_wait_are_told_of_a_lost_connection_once_each(waiters: Waiters[str]):
    assert sorted(waiters.take_all()) == ["batch", "one"]
    assert waiters.take_all() == []
