"""Asks one body after the other, and counts; stops at the first thing that may not be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from tests.requests_fuzz.check import Wrong, check, entries, text_of
from tests.requests_fuzz.generate import Body, Generator
from tests.requests_fuzz.subject import Subject, decoded
from vmmd.api.methods import METHODS

# After so many bodies the VMs that may be harmed are others, and the bystanders are looked at.
ROUND = 250

# What may wait for longer than a caller's patience: guests that run, or sleep, for good.
MAY_WAIT = frozenset({"vcpu.run", "vm.advance"})


@dataclass
class Tally:
    """What was asked, and what came of it.

    Attributes:
        bodies: How many bodies were sent.
        requests: How many requests were in them.
        looks: How often the bystanders were looked at.
        methods: How many requests named each method; "(none)" where they named none that is there.
        codes: How many answers had each code; 0 for a result.
        given_up: How many bodies were not waited for.
    """

    bodies: int = 0
    requests: int = 0
    looks: int = 0
    methods: Counter[str] = field(default_factory=Counter)
    codes: Counter[int] = field(default_factory=Counter)
    given_up: int = 0


@dataclass(frozen=True)
class Finding:
    """What may not be: a sentence, the body that showed it, and its answer."""

    sentence: str
    body: bytes
    answer: str


async def fuzz(
    subject: Subject, seed: str, requests: int, tally: Tally, progress: Callable[[Tally], None]
) -> Finding | None:
    """Send bodies until so many requests were made; give the first thing that may not be, or None."""
    generator = Generator(seed, subject.world, subject.spared)
    before = await subject.snapshot()
    body = Body(b"", None, 0)
    for body in generator.bodies():
        finding = await _ask(subject, body, tally)
        if finding is not None:
            return finding
        tally.bodies += 1
        if tally.bodies % ROUND == 0 or tally.requests >= requests:
            tally.looks += 1
            if await subject.snapshot() != before:
                return Finding("the bystanders are not what they were", body.text, "")
            await subject.renew_prey()
            progress(tally)
        if tally.requests >= requests:
            break
    return None


async def _ask(subject: Subject, body: Body, tally: Tally) -> Finding | None:
    tally.requests += body.requests
    names = [_method(request) for request in (body.value if isinstance(body.value, list) else [body.value])]
    tally.methods.update(names)
    answer: Any = None
    raw = b""
    try:
        status, raw = await subject.send(body.text)
        answer = decoded(status, raw)
        check(body.value, answer, is_known=body.value is not None or body.text == b"null")
    except TimeoutError:
        tally.given_up += 1
        if body.value is not None and not MAY_WAIT.intersection(names):
            return Finding("there was no answer in time", body.text, "")
        return None
    except (aiohttp.ClientError, OSError) as error:
        return Finding(f"the daemon does not answer: {error!r}", body.text, "")
    except Wrong as wrong:
        return Finding(str(wrong), body.text, text_of(answer))
    except ValueError as error:
        return Finding(f"the answer is no JSON: {error}", body.text, repr(raw[:500]))
    tally.codes.update(entry["error"]["code"] if "error" in entry else 0 for entry in entries(answer))
    return None


def _method(request: Any) -> str:
    name = request.get("method") if isinstance(request, dict) else None
    return name if isinstance(name, str) and name in METHODS else "(none)"
