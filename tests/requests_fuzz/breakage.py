"""Ways in which a request can be wrong: its parameters, its envelope, its bytes."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

Request = dict[str, Any]

_DEEP: Any = 0
for _ in range(40):
    _DEEP = [_DEEP]

STRANGE: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 255, 256, 1 << 31, 1 << 32, (1 << 53) + 1, 1 << 63, 1 << 64, -(1 << 63), 10**400),
    *(0.5, -0.0, 1.0, 1e308, 1e-300),
    *(
        "",
        "0",
        "1",
        "0x",
        "0x1",
        "0xg",
        "0x" + "f" * 17,
        "-1",
        "1e3",
        "null",
        "\x00",
        "\ud800",
        "é" * 300,
        "A" * 70_000,
    ),
    *("A" * 70_000, "A", "====", "AAA", "AA=A", "A A=", "AAAA====", "__--"),
    *([], [[]], [1, "2", None], {}, {"a": {}}, {"": 0}, _DEEP, ["KVM_MEM_READONLY", "KVM_MEM_NOTHING"], [1] * 2000),
)
"""Values that hardly any parameter takes."""


_INSERTED = (b'"', b"\\", b"{", b"]", b",", b"\x00", b"\xff", b"\\ud800", b"NaN", b"[" * 99)


def strange(rng: random.Random) -> Any:
    """Give a value that hardly any parameter takes; the caller may change it."""
    return copy.deepcopy(rng.choice(STRANGE))


def _wrong_value(rng: random.Random, request: Request) -> None:
    params = request["params"]
    if params:
        params[rng.choice(list(params))] = strange(rng)


def _wrong_inside(rng: random.Random, request: Request) -> None:
    """Put something strange one level down, into a list or an object among the parameters."""
    inner = [value for value in request["params"].values() if isinstance(value, list | dict) and value]
    if not inner:
        _wrong_value(rng, request)
        return
    value = rng.choice(inner)
    key = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
    value[key] = strange(rng)


def _missing(rng: random.Random, request: Request) -> None:
    if request["params"]:
        del request["params"][rng.choice(list(request["params"]))]


def _extra(rng: random.Random, request: Request) -> None:
    request["params"][rng.choice(("extra", "", "Vm", "hold", "__class__", "é" * 100))] = strange(rng)


def _as_text(rng: random.Random, request: Request) -> None:
    """Give a number as its text, or a text as the number that it might be."""
    name = rng.choice(list(request["params"]) or [""])
    if name:
        value = request["params"][name]
        request["params"][name] = str(value) if not isinstance(value, str) else len(value)


def _by_position(rng: random.Random, request: Request) -> None:
    values = list(request["params"].values())
    rng.shuffle(values)
    request["params"] = values[: rng.randint(0, len(values))] + [strange(rng)] * rng.choice((0, 1, 20))


PARAMETERS: tuple[Callable[[random.Random, Request], None], ...] = (
    *(_wrong_value, _wrong_value, _wrong_inside, _missing, _extra, _as_text, _by_position),
)
"""What goes wrong with parameters that are given by name."""


def break_envelope(rng: random.Random, request: Request) -> Any:
    """Give a request whose envelope is wrong, or something in its place that is none."""
    name = rng.choice(("jsonrpc", "method", "params", "id", "more", "all"))
    if name == "all":
        return strange(rng)
    if rng.random() < 0.3:
        request.pop(name, None)
    elif name == "method" and rng.random() < 0.5:
        method = request["method"]
        request["method"] = rng.choice((method.upper(), method + "s", method[1:], method.replace(".", "_"), "." * 3000))
    else:
        request[name] = strange(rng)
    return request


def break_bytes(rng: random.Random, body: bytes) -> bytes:
    """Give a body of which some bytes are others, gone, doubled or new."""
    broken = bytearray(body)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(len(broken) + 1)
        end = min(len(broken), at + rng.choice((1, 1, 4, 30)))
        match rng.randrange(6):
            case 0:
                broken[at:end] = rng.randbytes(end - at)
            case 1:
                del broken[at:end]
            case 2:
                broken[at:at] = broken[at:end]
            case 3:
                broken[at:at] = rng.choice(
                    (b'"', b"\\", b"{", b"]", b",", b"\x00", b"\xff", b"\\ud800", b"NaN", b"[" * 99)
                )
            case 4:
                del broken[at:]
            case _:
                broken[at:end] = bytes(byte ^ 1 << rng.randrange(8) for byte in broken[at:end])
    return bytes(broken)
