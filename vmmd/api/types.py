"""What wire models are made of: 64-bit quantities, bytes, flags, and the base classes of parameters and results.

Refuses what Python would forgive: integers are never booleans, floats or decimal strings, and never leave their width.
No model here can be changed once made.
"""

import base64
import binascii
import re
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, WithJsonSchema
from pydantic_core import PydanticKnownError

U32_MAX = 2**32 - 1
U64_MAX = 2**64 - 1

# KVM's names for the bits of a memslot's `flags` (uapi/linux/kvm.h).
MEM_FLAGS: Mapping[str, int] = {"KVM_MEM_LOG_DIRTY_PAGES": 1 << 0, "KVM_MEM_READONLY": 1 << 1}

# KVM's names for the bits of KVM_SET_GUEST_DEBUG's `control`.
GUESTDBG_FLAGS: Mapping[str, int] = {
    "KVM_GUESTDBG_ENABLE": 1 << 0,
    "KVM_GUESTDBG_SINGLESTEP": 1 << 1,
    "KVM_GUESTDBG_USE_SW_BP": 1 << 16,
}

# A name may stand twice; a flag is one bit of 32.
_MOST_FLAGS = 32

_HEX = re.compile(r"0[xX][0-9a-fA-F]{1,16}")
_HEX_SCHEMA = {"type": "string", "pattern": "^0x[0-9a-f]{1,16}$", "examples": ["0x100000"]}
_U64_SCHEMA = {
    "anyOf": [
        {"type": "integer", "minimum": 0, "maximum": U64_MAX},
        {"type": "string", "pattern": "^0[xX][0-9a-fA-F]{1,16}$"},
    ]
}


def _u64(value: object) -> object:
    """Give the integer for an integer or a "0x…" string; the bound is written out, since Python integers never wrap."""
    if type(value) is int and 0 <= value <= U64_MAX:
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return _count(value)
    if isinstance(value, str) and _HEX.fullmatch(value):
        return int(value, 16)
    raise ValueError('a 64-bit quantity is an integer, or a string like "0x1000" with 1 to 16 hexadecimal digits')


def _count(value: int) -> int:
    if not 0 <= value <= U64_MAX:
        raise ValueError("a 64-bit quantity is at least 0 and at most 2^64 - 1")
    return value


def entries(least: int, most: int) -> BeforeValidator:
    """Refuse a shorter or longer list or object before anything in it is looked at.

    What is wrong with each of a million entries takes gigabytes to collect, so the number comes first.
    """

    def check(value: object) -> object:
        if isinstance(value, list | tuple | dict) and not least <= len(value) <= most:
            context = {"field_type": "List", "min_length": least, "max_length": most, "actual_length": len(value)}
            raise PydanticKnownError("too_long" if len(value) > most else "too_short", context)
        return value

    return BeforeValidator(check)


def _flags(names: Mapping[str, int], value: object) -> object:
    """Give the integer for a list of flag names; anything else goes on to the integer check."""
    if isinstance(value, int) or not isinstance(value, list | tuple):
        return value
    if len(value) > _MOST_FLAGS:
        raise ValueError(f"a list of flags has at most {_MOST_FLAGS} names")
    bits = 0
    for name in value:
        if not isinstance(name, str) or name not in names:
            raise ValueError(f"{name!r:.60} is no flag here; the flags are {', '.join(names)}")
        bits |= names[name]
    return bits


def _flags_schema(names: Mapping[str, int]) -> dict[str, Any]:
    integer = {"type": "integer", "minimum": 0, "maximum": U32_MAX}
    return {"anyOf": [integer, {"type": "array", "maxItems": _MOST_FLAGS, "items": {"enum": list(names)}}]}


def _bytes(value: object) -> object:
    """Give the bytes for a base64 string; bytes go on as they are, for callers in Python."""
    if isinstance(value, str):
        try:
            return binascii.a2b_base64(value, strict_mode=True)
        except (binascii.Error, ValueError) as error:
            raise ValueError(f"bytes are standard base64 with padding ({error})") from None
    return value


def _base64(value: bytes) -> str:
    return base64.b64encode(value).decode("ascii")


U32 = Annotated[int, Field(strict=True, ge=0, le=U32_MAX)]
"""A small number: an id, a count, a length, a time in milliseconds. Always an integer on the wire."""

Count = Annotated[
    int,
    Field(strict=True),
    AfterValidator(_count),
    WithJsonSchema({"type": "integer", "minimum": 0, "maximum": U64_MAX}),
]
"""A number that only grows: a generation, a counter, nanoseconds. Always an integer on the wire."""

U64In = Annotated[
    int,
    BeforeValidator(_u64),
    PlainSerializer(hex, return_type=str, when_used="json"),
    WithJsonSchema(_U64_SCHEMA),
]
"""An address, size or register in a request: an integer or a "0x…" string, never outside 64 bits."""

Hex64 = Annotated[
    int,
    BeforeValidator(_u64),
    PlainSerializer(hex, return_type=str, when_used="json"),
    WithJsonSchema(_HEX_SCHEMA),
]
"""An address, size or register in a reply: given as a "0x…" string, since JavaScript and jq round beyond 2^53."""

# pydantic applies what stands behind a validator in Python, and what stands before it in C.
MemFlags = Annotated[
    int,
    Field(strict=True, ge=0, le=U32_MAX),
    BeforeValidator(partial(_flags, MEM_FLAGS)),
    WithJsonSchema(_flags_schema(MEM_FLAGS)),
]
"""A memslot's flags in a request: the integer, or a list of names out of `MEM_FLAGS`. KVM says which bits are legal."""

GuestDebug = Annotated[
    int,
    Field(strict=True, ge=0, le=U32_MAX),
    BeforeValidator(partial(_flags, GUESTDBG_FLAGS)),
    WithJsonSchema(_flags_schema(GUESTDBG_FLAGS)),
]
"""What KVM_SET_GUEST_DEBUG controls: the integer, or a list of names out of `GUESTDBG_FLAGS`."""

Base64 = Annotated[
    bytes,
    BeforeValidator(_bytes),
    PlainSerializer(_base64, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "contentEncoding": "base64"}),
]
"""Bytes: standard base64 with padding on the wire, `bytes` in Python."""

VmId = Annotated[str, Field(min_length=1, max_length=64, description="The VM's id, as kvm.create_vm gave it.")]
VcpuId = Annotated[U32, Field(description="The vCPU's id, as it was given to vm.create_vcpu.")]
HoldName = Annotated[str, Field(min_length=1, max_length=256)]


class WireModel(BaseModel):
    """What every model of the wire shares: it cannot be changed."""

    model_config = ConfigDict(frozen=True)


class Params(WireModel):
    """A method's parameters. Members that the model does not name are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    deadline_ms: Annotated[int, Field(strict=True, ge=1, le=U32_MAX)] | None = Field(
        default=None,
        description="How long the call may take, in milliseconds from when its request, or its batch, has arrived; "
        "then it is ended with ETIMEDOUT, or not begun. Left out: as long as it takes.",
    )

    @classmethod
    def positions(cls) -> tuple[str, ...]:
        """Give the parameters' names in the order of a call by position: a method's own, then its options."""
        mixins = [mixin for mixin in (GateOptions, ChangeOptions, RequestOptions, Params) if issubclass(cls, mixin)]
        options = dict.fromkeys(
            name for mixin in mixins for name in mixin.__annotations__ if name in mixin.model_fields
        )
        return (*(name for name in cls.model_fields if name not in options), *options)

    def wire(self) -> dict[str, Any]:
        """Give the parameters as they go over the wire: JSON's types, and only what was set."""
        return self.model_dump(mode="json", exclude_unset=True)


class Result(WireModel):
    """A method's result. Members that the model does not name are ignored: a later daemon's reply may have more."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class RequestOptions(Params):
    """The option of every call that changes something."""

    request_id: Annotated[str, Field(min_length=1, max_length=128)] | None = Field(
        default=None,
        description="A name for this call that nobody else uses, as a UUID. A repeat with the same name and parameters "
        "gets the first success again and does nothing twice; with other parameters it is EINVAL.",
    )


class ChangeOptions(RequestOptions):
    """The options of every call that changes something of a VM."""

    if_generation: U64In | None = Field(
        default=None,
        description="Refuse the call with ESTALE unless the VM's slot table still has this generation.",
    )


class GateOptions(Params):
    """The options of every call that uses memslots, and so stays out while somebody else holds the VM."""

    hold: HoldName | None = Field(
        default=None, description="The name of the open hold that this call belongs to; left out: no hold."
    )
    wait_ms: U32 = Field(
        default=0,
        description="How long to wait, in milliseconds, while somebody else's hold is open, before EBUSY; 0: no time. "
        "At most limits.max_wait_ms; where that is less, EBUSY says so.",
    )


class VmParams(Params):
    """The parameters of a method of one VM."""

    vm: VmId


class VcpuParams(VmParams):
    """The parameters of a method of one vCPU."""

    vcpu: VcpuId
