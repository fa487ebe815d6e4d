"""What the tests of this folder speak: JSON with a dispatcher over a real core."""

import json
from typing import Any

from vmmd.rpc.caller import Caller
from vmmd.rpc.dispatch import Dispatcher, finished
from vmmd.rpc.scope import BodyScope
from vmmd.rpc.traffic import Phase, Traffic

PAGE = 4096
REPLY_BYTES = 1 << 16


def open_traffic() -> Traffic:
    """Give traffic that takes calls."""
    traffic = Traffic(calls_in_flight_per_client=2, unread_bytes=64 << 20)
    traffic.phase = Phase.READY
    return traffic


class Failed(Exception):  # noqa: N818  (it is an answer)
    """A call answered with an error."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(error)
        self.code: int = error["code"]
        self.message: str = error["message"]
        self.data: dict[str, Any] = error.get("data") or {}


class Wire:
    """Speaks JSON with a dispatcher over a real core."""

    def __init__(self, dispatcher: Dispatcher[BodyScope]) -> None:
        self.dispatcher = dispatcher
        self.caller_is_gone = False

    async def send(self, body: Any, caller: Caller | None = None) -> Any:
        caller = caller or Caller(has_gone=lambda: self.caller_is_gone)
        try:
            answer = await finished(self.dispatcher.begin(json.dumps(body).encode(), caller))
        finally:
            caller.over()
        return None if answer is None else json.loads(answer)

    async def call(self, name: str, /, **params: Any) -> Any:
        return self.result(await self.send(request(name, **params)))

    async def batch(self, *requests: dict[str, Any]) -> list[Any]:
        """Send a batch; give each entry's result, or the `Failed` that it was."""
        outcomes = []
        for answer in await self.send(list(requests)):
            try:
                outcomes.append(self.result(answer))
            except Failed as failed:
                outcomes.append(failed)
        return outcomes

    @staticmethod
    def result(answer: dict[str, Any]) -> Any:
        if "error" in answer:
            raise Failed(answer["error"])
        return answer["result"]


def request(name: str, /, **params: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "method": name, "params": params, "id": name}


def set_region(vm: str, slot: int, gpa: int, size: int, hva: Any, **options: Any) -> dict[str, Any]:
    fields = {"slot": slot, "flags": 0, "guest_phys_addr": gpa, "memory_size": size, "userspace_addr": hva}
    return request("vm.set_user_memory_region", vm=vm, **(fields | options))


async def regions(wire: Wire, vm: str) -> dict[int, dict[str, Any]]:
    table = await wire.call("vm.get_memory_regions", vm=vm)
    return {region["slot"]: region for region in table["regions"]}


async def generation(wire: Wire, vm: str) -> int:
    return (await wire.call("vm.get_memory_regions", vm=vm))["generation"]


def is_failed(outcome: Any, errno: str) -> bool:
    return isinstance(outcome, Failed) and outcome.data.get("errno") == errno
