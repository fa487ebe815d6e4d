"""A share of the requests that `python -m tests.requests_fuzz` makes, and proof that it would notice."""

from __future__ import annotations

import errno
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from tests.requests_fuzz.__main__ import summary
from tests.requests_fuzz.check import Wrong, check
from tests.requests_fuzz.fuzz import Tally, fuzz
from tests.requests_fuzz.generate import Generator
from tests.requests_fuzz.subject import subject
from tests.requests_fuzz.values import World
from vmmd.api.methods import METHODS

REQUESTS = 4000
ASKED = {"jsonrpc": "2.0", "method": "vm.stop", "params": {"vm": "vm1"}, "id": 1}
GAVE = {"jsonrpc": "2.0", "result": None, "id": 1}


def failed(code: int, **data: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "error": {"code": code, "message": "…", "data": data}, "id": 1}


async def test_a_daemon_gives_proper_answers_whatever_it_is_asked_and_its_vms_are_untouched(tmp_path: Path) -> None:
    tally = Tally()
    async with subject(tmp_path) as asked:
        finding = await fuzz(asked, "a share", REQUESTS, tally, lambda _tally: None)
        assert finding is None
        assert asked.daemon.process.returncode is None
    assert tally.requests >= REQUESTS
    assert tally.methods.keys() >= METHODS.keys() - {"rpc.discover", "kvm.destroy_vm"}
    assert {0, -32700, -32600, -32601, -32602, errno.EINVAL, errno.EBADF} <= tally.codes.keys()
    assert "by answer:" in summary(tally)


async def test_bystanders_that_were_touched_are_noticed(tmp_path: Path) -> None:
    async with subject(tmp_path) as asked:
        before = await asked.snapshot()
        for vm in asked.spared:
            await asked.call("vcpu.set_regs", vm=vm, vcpu=0, regs={"a7": 1})
        after = await asked.snapshot()
    assert all(after[vm]["regs"] != before[vm]["regs"] for vm in asked.spared)
    assert any(after[vm].get("digest") != before[vm].get("digest") for vm in asked.spared)


def test_the_same_seed_gives_the_same_bodies_and_another_seed_others() -> None:
    def bodies(seed: str) -> list[bytes]:
        generator = Generator(seed, World(["vm3"]), frozenset({"vm1"}))
        return [body.text for body in islice(generator.bodies(), 300)]

    assert bodies("1") == bodies("1")
    assert bodies("1") != bodies("2")
    assert not any(b'"vm1"' in body for body in bodies("1"))


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (None, "answers were awaited"),
        ([GAVE], "a request with an object"),
        (GAVE | {"id": "1"}, "came back as"),
        (GAVE | {"result": 5}, "does not fit its schema"),
        ({"jsonrpc": "2.0", "id": 1}, "no JSON-RPC answer"),
        (GAVE | {"error": {}}, "no JSON-RPC answer"),
        ([], "no JSON-RPC answer"),
        (failed(-32603), "inside the daemon"),
        (failed(22), "neither JSON-RPC's nor"),
        (failed(22, errno="EEXIST"), "neither JSON-RPC's nor"),
        (failed(17, errno="EEXIST"), "the table does not have"),
    ],
)
def test_an_answer_that_may_not_be_is_noticed(answer: Any, says: str) -> None:
    with pytest.raises(Wrong, match=says):
        check(ASKED, answer, is_known=True)


@pytest.mark.parametrize("answer", [GAVE, failed(9, errno="EBADF"), failed(-32602)])
def test_a_proper_answer_is_none_of_those(answer: Any) -> None:
    check(ASKED, answer, is_known=True)
