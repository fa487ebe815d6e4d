"""Results as JSON text; a large one is made in pieces, and other calls are answered between two of them.

The encoder is C and keeps the GIL, so a thread would stall the event loop as much as the loop itself: what helps is to
give way. Results are values that nobody changes, so what is written is the state in which the call has ended, however
long it takes. A call that has begun to be written is written to its end: what it has fetched may be nowhere else.

A small result is one call of the encoder, and so is any within a hold of its batch: a pause gives way to nobody.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from pydantic import TypeAdapter

from vmmd.api.types import Result
from vmmd.rpc.caller import carry_through

A = TypeVar("A")
B = TypeVar("B")

# Up to here the encoder takes less than a tenth of a millisecond or so, and a piece is not worth its trouble.
_LARGE_BYTES, _MANY_ENTRIES = 16 << 10, 64

# A piece of bytes is written as base64, so it has to be a multiple of 3.
_PIECE_BYTES = 48 << 10

# What an entry of a list amounts to beside its bytes, as JSON.
_ENTRY_BYTES = 256


class Encoded(bytes):
    """A result that its handler has encoded, where and as it was made."""


_Encode = Callable[[Any], bytes]
"""Gives the JSON text of a part of a member that can be cut: of some of its bytes, or of some of its entries."""


async def encode_result(adapter: TypeAdapter[Any], result: Any, *, at_once: bool) -> bytes:
    """Give the JSON text of a result. A member that is not set is not in it.

    Args:
        adapter: What encodes the method's results.
        result: The result.
        at_once: Whether nobody is given way to.
    """
    if isinstance(result, Encoded):
        return result
    if at_once or not is_large(result):
        return adapter.dump_json(result, exclude_unset=True)
    return await carry_through(_joined(pieces(adapter, result)))


async def make_all(make: Callable[[A], B], entries: Sequence[A], *, at_once: bool) -> tuple[B, ...]:
    """Make one thing of each entry; where there are many, others have their turn meanwhile, unless it is `at_once`."""
    if at_once or len(entries) <= _MANY_ENTRIES:
        return tuple(map(make, entries))
    made: list[B] = []
    for start in range(0, len(entries), _MANY_ENTRIES):
        made.extend(map(make, entries[start : start + _MANY_ENTRIES]))
        await asyncio.sleep(0)
    return tuple(made)


def is_large(value: Any) -> bool:
    """Tell whether a result, or a member of one, is worth pieces."""
    if isinstance(value, int):
        return False
    if isinstance(value, Result):
        return any(map(is_large, value.__dict__.values()))
    if isinstance(value, bytes | str):
        return len(value) > _LARGE_BYTES
    if isinstance(value, tuple | list):
        return len(value) > _MANY_ENTRIES or any(map(is_large, value))
    return isinstance(value, dict) and len(value) > _MANY_ENTRIES


def pieces(adapter: TypeAdapter[Any], result: Any) -> Iterator[bytes]:
    """Give the JSON text of a large result, in pieces of bounded work."""
    if isinstance(result, Result):
        yield from _model(result)
    else:
        yield from _cut(result, partial(adapter.dump_json, exclude_unset=True))


async def _joined(parts: Iterator[bytes]) -> bytes:
    done = []
    for part in parts:
        done.append(part)
        await asyncio.sleep(0)
    return b"".join(done)


def _model(model: Result) -> Iterator[bytes]:
    separator = b"{"
    for name in type(model).model_fields:
        if name in model.model_fields_set:
            yield separator + b'"' + name.encode("ascii") + b'":'
            separator = b","
            value = getattr(model, name)
            encode = partial(_member, model, name)
            if is_large(value) and not isinstance(value, Result):
                yield from _cut(value, encode)
            else:
                yield encode(value)
    yield b"}"


def _member(model: Result, name: str, value: Any) -> bytes:
    """Give the JSON text of a value as that member of the model: what stands behind its name."""
    alone = type(model).model_construct({name}, **{name: value})
    text = alone.__pydantic_serializer__.to_json(alone, exclude_unset=True)
    return text[len(f'{{"{name}":') : -1]


def _cut(value: Any, encode: _Encode) -> Iterator[bytes]:
    """Give the JSON text of bytes, text, a list or an object in pieces: the ends of each part's text are cut off."""
    ends = encode(value[:0] if not isinstance(value, Mapping) else {})
    yield ends[:1]
    separator = b""
    for part in _parts(value):
        if isinstance(part, Result):
            yield separator
            yield from _model(part)
        else:
            yield separator + encode(part)[1:-1]
        separator = b"," if not isinstance(value, bytes | str) else b""
    yield ends[1:]


def _parts(value: Any) -> Iterator[Any]:
    """Cut a value into parts of bounded size; a large model in a list is a part of its own."""
    if isinstance(value, bytes | str):
        for start in range(0, len(value), _PIECE_BYTES):
            yield value[start : start + _PIECE_BYTES]
    elif isinstance(value, Mapping):
        names = list(value)
        for start in range(0, len(names), _MANY_ENTRIES):
            yield {name: value[name] for name in names[start : start + _MANY_ENTRIES]}
    else:
        yield from _runs(value)


def _runs(entries: Sequence[Any]) -> Iterator[Any]:
    """Cut a list: into runs of small entries, and large ones that stand alone."""
    start = size = 0
    for end, entry in enumerate(entries):
        if isinstance(entry, Result) and is_large(entry):
            if start < end:
                yield entries[start:end]
            yield entry
            start, size = end + 1, 0
            continue
        size += _ENTRY_BYTES + _bytes_in(entry)
        if size >= _PIECE_BYTES:
            yield entries[start : end + 1]
            start, size = end + 1, 0
    if start < len(entries):
        yield entries[start:]


def _bytes_in(entry: Any) -> int:
    if not isinstance(entry, Result):
        return 0
    return sum(len(value) for value in entry.__dict__.values() if isinstance(value, bytes | str))
