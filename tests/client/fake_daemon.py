"""A daemon in memory for the client's tests: one VM's slot table with holds, and whatever else a test scripts.

It keeps the wire contract where a transaction depends on it: generations, `if_generation`, holds that fail and roll
back. It checks nothing else; what KVM allows is tested elsewhere.
"""

import errno
import json
from collections.abc import Callable
from typing import Any

from vmmd_client import Client, MemoryTransport

Params = dict[str, Any]


class RefusedError(Exception):
    """An error answer."""

    def __init__(self, code: int, message: str = "refused", **data: Any) -> None:
        super().__init__(message)
        self.error = {"code": code, "message": message, "data": {"errno": errno.errorcode.get(code), **data}}


class FakeDaemon:
    """Answers bodies; `requests` has what was asked, an entry a round trip."""

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.generation = 7
        self.slots: dict[int, Params] = {}
        self.refuse: dict[int, RefusedError] = {}
        self.answers: dict[str, Callable[[Params], Any]] = {
            "kvm.get_api_version": lambda params: 12,
            "vm.kick_all_running_vcpus": self._kick,
            "vm.resume_all_kicked_vcpus": self._resume,
            "vm.set_user_memory_region": self._set_user_memory_region,
            "vm.set_user_memory_region_list": self._set_user_memory_region_list,
            "vm.get_memory_regions": self._get_memory_regions,
            "vm.get_dirty_log": self._get_dirty_log,
        }
        self._undo: tuple[int, dict[int, Params]] | None = None
        self._hold: str | None = None
        self._failed: RefusedError | None = None

    def client(self) -> Client:
        """Give a client of this daemon."""
        return Client(MemoryTransport(self.answer))

    def give_slot(self, slot: int, gpa: int, size: int, userspace_addr: int, flags: int = 0) -> None:
        """Put a slot in the table, as another client would."""
        self.generation += 1
        self.slots[slot] = {
            "slot": slot,
            "flags": flags,
            "guest_phys_addr": hex(gpa),
            "memory_size": hex(size),
            "userspace_addr": hex(userspace_addr),
        }

    @property
    def last_methods(self) -> list[str]:
        """The methods of the last round trip, in their order."""
        last = self.requests[-1]
        return [entry["method"] for entry in (last if isinstance(last, list) else [last])]

    async def answer(self, body: bytes) -> bytes:
        asked = json.loads(body)
        self.requests.append(asked)
        reply = [self._entry(entry) for entry in asked] if isinstance(asked, list) else self._entry(asked)
        return json.dumps(reply).encode()

    def _entry(self, entry: dict[str, Any]) -> dict[str, Any]:
        head = {"jsonrpc": "2.0", "id": entry["id"]}
        try:
            answer = self.answers.get(entry["method"])
            if answer is None:
                raise RefusedError(-32601, f"there is no method {entry['method']}")
            return {**head, "result": answer(entry["params"])}
        except RefusedError as refusal:
            if self._hold is not None and self._failed is None:
                self._failed = refusal
            return {**head, "error": refusal.error}

    def _check_generation(self, params: Params) -> None:
        if params.get("if_generation", self.generation) != self.generation:
            raise RefusedError(errno.ESTALE, f"the slot table's generation is {self.generation}")

    def _check_hold(self, params: Params) -> None:
        if params.get("hold") != self._hold:
            raise RefusedError(errno.ECANCELED if self._hold is None else errno.EBUSY)
        if self._failed is not None:
            raise RefusedError(errno.ECANCELED, "the hold has failed")

    def _kick(self, params: Params) -> Params:
        self._check_generation(params)
        self._hold, self._failed, self._undo = params["hold"], None, (self.generation, dict(self.slots))
        return {"hold": self._hold, "kicked": 4, "kick_ns": 1_500, "generation": self.generation}

    def _resume(self, params: Params) -> Params:
        if self._hold != params["hold"] or self._undo is None:
            raise RefusedError(errno.ECANCELED, "there is no such hold")
        self._hold, failed = None, self._failed
        if failed is not None:
            if self.slots != self._undo[1]:
                self.generation, self.slots = self.generation + 1, self._undo[1]
            raise RefusedError(failed.error["code"], failed.error["message"], rolled_back=True)
        return {"pause_ns": 42_000, "generation": self.generation}

    def _set_user_memory_region(self, params: Params) -> Params:
        self._check_hold(params)
        self._check_generation(params)
        if params["slot"] in self.refuse:
            raise self.refuse[params["slot"]]
        if params["memory_size"] == 0:
            if params["slot"] not in self.slots:
                raise RefusedError(errno.EINVAL, ioctl="KVM_SET_USER_MEMORY_REGION")
            del self.slots[params["slot"]]
            self.generation += 1
        else:
            fields = ("guest_phys_addr", "memory_size", "userspace_addr", "flags")
            self.give_slot(params["slot"], *(params[name] for name in fields))
        return {"generation": self.generation}

    def _set_user_memory_region_list(self, params: Params) -> Params:
        self._check_generation(params)
        dirty: list[Params] = []
        if not params["dry_run"]:
            for region in params["regions"]:
                old = self.slots.get(region["slot"])
                self._set_user_memory_region({"hold": params.get("hold"), **region})
                if old is not None and old["flags"] & 1 and not region["flags"] & 1:
                    log = {"guest_phys_addr": old["guest_phys_addr"], "bitmap": "AQAAAAAAAAA="}
                    dirty.append({"slot": region["slot"], **log})
        return {"generation": self.generation, "pause_ns": None, "dirty": dirty}

    def _get_dirty_log(self, params: Params) -> Params:
        self._check_hold(params)
        self._check_generation(params)
        return {"bitmap": "AQAAAAAAAAA="}

    def _get_memory_regions(self, params: Params) -> Params:
        return {"generation": self.generation, "regions": [self.slots[slot] for slot in sorted(self.slots)]}
