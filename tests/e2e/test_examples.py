"""Every example of the OpenRPC document, made against the real daemon that gave the document."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import aiohttp

from tests.api.schemas import validator
from tests.e2e.process import call, request, serving
from vmmd.api.methods import METHODS
from vmmd.api.openrpc import document

VM = "vm1"


def renamed(value: Any, old: str, new: str) -> Any:
    """Give a value in JSON's types with one VM's id in place of another's."""
    return json.loads(json.dumps(value).replace(json.dumps(old), json.dumps(new)))


async def ask(socket: aiohttp.ClientWebSocketResponse, method: str, params: dict[str, Any]) -> Any:
    """Make a call over a WebSocket, which every method knows; what comes beside its answer is no answer."""
    await socket.send_json(request(method, **params))
    while "id" not in (answer := await socket.receive_json()):
        pass
    assert "error" not in answer, (method, params, answer)
    return answer["result"]


async def answer(socket: aiohttp.ClientWebSocketResponse, method: dict[str, Any], example: dict[str, Any]) -> Any:
    """Make an example's calls, and give what the last one answers, with the VM's id as in the document."""
    vm = VM
    for step in example["x-before"]:
        result = await ask(socket, step["method"], renamed(step["params"], VM, vm))
        if step["method"] == "kvm.create_vm":
            vm = result["vm"]
    params = {value["name"]: value["value"] for value in example["params"]}
    result = await ask(socket, method["name"], renamed(params, VM, vm))
    return renamed(result, result["vm"] if method["name"] == "kvm.create_vm" else vm, VM)


def without(result: Any, names: list[str]) -> Any:
    return {name: value for name, value in result.items() if name not in names} if names else result


async def test_every_example_is_answered_as_it_says_and_by_its_schema(tmp_path: Path) -> None:
    async with serving(tmp_path) as daemon, daemon.session() as session:
        given = await call(session, "rpc.discover")
        assert given == document()
        for method in given["methods"]:
            for example in method["examples"]:
                async with session.ws_connect("/ws") as socket:
                    result = await answer(socket, method, example)
                validator(method["result"]["schema"]).validate(result)
                varies = example["x-varies"]
                assert without(result, varies) == without(example["result"]["value"], varies), method["name"]
                assert all(name in result for name in varies), method["name"]
                for vm in await call(session, "kvm.list_vms"):
                    await call(session, "kvm.destroy_vm", vm=vm["vm"])
        assert len(given["methods"]) == len(METHODS)
