"""Bodies, one after the other: four in ten requests legal, the others broken in one way or several."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tests.requests_fuzz.breakage import PARAMETERS, Request, break_bytes, break_envelope
from tests.requests_fuzz.values import Values, World
from vmmd.api.methods import METHODS
from vmmd.api.types import VmParams

# What would leave the others little to be asked about, if it came as often as they do.
_RARE = frozenset({"kvm.destroy_vm", "rpc.discover"})
_RARELY = 0.005

# limits.body_bytes, as shipped: what is larger is refused before anybody reads it.
LARGEST_BODY = 8 << 20

IDS: tuple[Any, ...] = (1, 0, -5, 2**70, 1.5, "", "a", "é", "x" * 500, None)


@dataclass(frozen=True)
class Body:
    """What is sent.

    Attributes:
        text: The bytes.
        value: What they stand for; None where they were broken as bytes, and may stand for nothing.
        requests: How many requests are in it.
    """

    text: bytes
    value: Any
    requests: int


class Generator:
    """Makes bodies from a seed, about a world that others change meanwhile.

    Args:
        seed: Any text.
        world: What there is to ask about.
        spared: Ids that no body may name.
    """

    def __init__(self, seed: str, world: World, spared: frozenset[str]) -> None:
        self._rng = random.Random(seed)
        self._values = Values(self._rng, world)
        self._spared = [json.dumps(spare).encode() for spare in spared]
        self._methods = [name for name, row in METHODS.items() if name not in _RARE]

    def bodies(self) -> Iterator[Body]:
        """Give bodies without end."""
        while True:
            body = self._body()
            if len(body.text) <= LARGEST_BODY and not any(spare in body.text for spare in self._spared):
                yield body

    def _body(self) -> Body:
        rng = self._rng
        if rng.random() < 0.12:
            length = rng.choice((0, 1, 2, 3, 5, 8, 20)) if rng.random() < 0.998 else 1001
            value: Any = [self._entry() for _ in range(length)]
        else:
            value = self._entry()
        requests = max(len(value), 1) if isinstance(value, list) else 1
        text = json.dumps(value, ensure_ascii=rng.random() < 0.5 or not _is_unicode(value)).encode()
        if rng.random() < 0.15:
            return Body(break_bytes(rng, text), None, requests)
        return Body(text, value, requests)

    def _entry(self) -> Any:
        rng = self._rng
        request = self.request()
        fate = rng.random()
        if fate < 0.4:
            return request
        if fate < 0.5:
            return break_envelope(rng, request)
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            if isinstance(request["params"], dict):
                rng.choice(PARAMETERS)(rng, request)
        return request

    def request(self) -> Request:
        """Give a request that is legal by its schemas."""
        rng = self._rng
        method = rng.choice(sorted(_RARE)) if rng.random() < _RARELY else rng.choice(self._methods)
        request: Request = {"jsonrpc": "2.0", "method": method, "params": self._values.params(method)}
        if issubclass(METHODS[method].params, VmParams) and rng.random() < 0.02:
            request["params"]["vm"] = "vm0"
        if rng.random() < 0.95:
            request["id"] = rng.choice(IDS)
        return request


def _is_unicode(value: Any) -> bool:
    """Tell whether a value can be written in UTF-8: a lone surrogate cannot."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True
