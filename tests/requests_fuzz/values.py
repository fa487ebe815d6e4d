"""Parameters that are legal by the OpenRPC document's schemas, and often legal in the daemon's present state too."""

from __future__ import annotations

import base64
import copy
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vmmd.api.openrpc import document
from vmmd.api.types import U32_MAX, U64_MAX
from vmmd.api.vcpus import MP_STATES

PAGE = 4096
HVA = 0x10_0000_0000
HOLDS = ("a", "b")

_DOCUMENT = document()
_SHARED = _DOCUMENT["components"]["schemas"]

PARAMETERS: Mapping[str, Mapping[str, Any]] = {
    method["name"]: {parameter["name"]: parameter for parameter in method["params"]} for method in _DOCUMENT["methods"]
}
"""By method and parameter: the descriptor, with its schema."""

# Values that reach past the first check, by the parameter's name: what schemas alone would hit once in a lifetime.
_LIKELY: Mapping[str, tuple[Any, ...]] = {
    "vcpu": (0, 0, 0, 1, 2, 3, 1023),
    "hold": HOLDS,
    "wait_ms": (0, 0, 1, 5),
    "lease_ms": (0, 1, 20),
    "timeout_ms": (0, 1, 5, 20),
    "deadline_ms": (0, 1, 20, 1000),
    "slot": (0, 0, 1, 1, 2, 3, 32763, 32764, 1 << 16),
    "flags": (0, 1, 1, 2, 3, ["KVM_MEM_LOG_DIRTY_PAGES"], ["KVM_MEM_READONLY"]),
    "guest_phys_addr": (0, PAGE, 4 * PAGE, 8 * PAGE, 0x200_0000, 1 << 51, PAGE - 1),
    "memory_size": (0, PAGE, 4 * PAGE, 16 * PAGE, (1 << 43) - PAGE),
    "userspace_addr": (HVA, HVA + PAGE, HVA + 8 * PAGE, HVA + 1, (1 << 47) - PAGE),
    "size": (0, PAGE, 4 * PAGE, 16 * PAGE, PAGE - 1),
    "length": (0, 1, 8, PAGE, 3 * PAGE),
    "first_page": (0, 64, 1),
    "num_pages": (0, 1, 4, 16, 64),
    "count": (1, 2, 64, 4096),
    "first": (0, 1),
    "since": (0, 0, 1, 100),
    "instructions": (0, 1, 100, 3000),
    "origin": (0, PAGE, U64_MAX - 3),
    "mp_state": tuple(MP_STATES),
    "extension": ("KVM_CAP_NR_MEMSLOTS", "KVM_CAP_DIRTY_LOG_RING", "KVM_CAP_OF_NOBODY"),
    "cap": ("KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2", "KVM_CAP_DIRTY_LOG_RING", "KVM_CAP_OF_NOBODY"),
    "args": ([], [1], [3], [65536], [PAGE, 0]),
    "source": ("nop", "1: addi a0, a0, 1\n wfi", "li a0, 0x9000\nld a1, 0(a0)", "wrong", ".word 1, 2"),
    "regs": ({}, {"pc": 0}, {"a0": "0x1", "sp": U64_MAX}, {"x0": 1}, {"mie": 0x888}, {"nobody": 1}),
    "name": ("a", None),
}
_CODE = ("EwUVAHMAUBA=", "NxUAACMwpQBzAFAQ", "N5UAAIM1BQBzAFAQ", "cwBQEA==", "")
_STEPS = tuple(range(-2, 3))


@dataclass
class World:
    """What is there to ask about: VMs that may be harmed, and the generation that slot tables have had lately."""

    vms: list[str]
    generation: int = 0


class Values:
    """Makes parameters.

    Args:
        rng: What draws them.
        world: What they can be about.
    """

    def __init__(self, rng: random.Random, world: World) -> None:
        self._rng = rng
        self._world = world

    def params(self, method: str) -> dict[str, Any]:
        """Give parameters by name: all that have to be, and some of those that may."""
        return {
            name: self.value(name, descriptor["schema"])
            for name, descriptor in PARAMETERS[method].items()
            if descriptor["required"] or self._rng.random() < 0.2
        }

    def value(self, name: str, schema: Mapping[str, Any]) -> Any:
        """Give a value for a parameter; mostly one that is likely to be useful."""
        rng = self._rng
        match name:
            case "vm":
                likely = rng.choice(self._world.vms) if self._world.vms and rng.random() < 0.95 else "vm0"
            case "if_generation":
                likely = self._world.generation
            case "request_id":
                likely = f"r{rng.randrange(1000)}"
            case "data" | "code" | "bitmap":
                likely = rng.choice(_CODE)
            case _ if name in _LIKELY:
                likely = copy.deepcopy(rng.choice(_LIKELY[name]))
            case _:
                return self._of(name, schema)
        return likely if name == "vm" or rng.random() < 0.8 else self._of(name, schema)

    def _of(self, name: str, schema: Mapping[str, Any]) -> Any:
        """Give a value of a schema."""
        rng = self._rng
        while "$ref" in schema or "anyOf" in schema or "allOf" in schema:
            choices = schema.get("anyOf") or schema.get("allOf")
            schema = rng.choice(choices) if choices else _SHARED[schema["$ref"].rpartition("/")[2]]
        make = {"integer": self._integer, "string": self._string, "array": self._array, "object": self._object}
        if "enum" in schema:
            return rng.choice(schema["enum"])
        if schema.get("type") == "boolean":
            return rng.random() < 0.5
        return make[schema["type"]](name, schema) if schema.get("type") in make else None

    def _array(self, name: str, schema: Mapping[str, Any]) -> list[Any]:
        least = schema.get("minItems", 0)
        length = self._rng.randint(least, min(least + 3, schema.get("maxItems", least + 3)))
        return [self._of(name, schema["items"]) for _ in range(length)]

    def _object(self, name: str, schema: Mapping[str, Any]) -> dict[str, Any]:
        if "properties" in schema:
            return {member: self.value(member, inner) for member, inner in schema["properties"].items()}
        inner = schema.get("additionalProperties", {"type": "string"})
        return {self._rng.choice(("pc", "a0", "x31", "mip", "?")): self._of(name, inner) for _ in range(2)}

    def _integer(self, _name: str, schema: Mapping[str, Any]) -> int:
        rng = self._rng
        least, most = schema.get("minimum", 0), schema.get("maximum", U32_MAX)
        near = rng.choice((least, most, 1 << rng.randrange(64))) + rng.choice(_STEPS)
        return min(max(near, least), most)

    def _string(self, _name: str, schema: Mapping[str, Any]) -> str:
        rng = self._rng
        if "pattern" in schema:
            return hex(rng.getrandbits(rng.choice((1, 12, 32, 52, 64))))
        if schema.get("contentEncoding") == "base64":
            size = rng.choice((0, 1, 4, 8, 100, 5000))
            return base64.b64encode(rng.randbytes(min(size, schema.get("maxLength", size) // 4 * 3))).decode()
        return "".join(rng.choices("abK_0é\U0001f600 \n", k=rng.randint(schema.get("minLength", 0), 20)))
