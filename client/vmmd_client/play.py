"""Plays scripts over a channel, on the event loop.

A script that is cancelled in the middle of a round trip is told that its answer is lost, and ends by itself behind the
caller's back: what it has opened it closes, and nobody waits for that.
"""

import asyncio
import contextlib
from typing import Any

from .channel import Channel, Reply
from .errors import Disconnected, RpcError, VmmdError
from .script import Answer, Ended, Exchange, Script, T, advance

# The event loop alone does not keep a task alive: here are those that go on when whoever started them was cancelled.
_ending: set[asyncio.Task[None]] = set()


async def play(channel: Channel, script: Script[T]) -> T:
    """Play a script to its end and give its result.

    Raises:
        VmmdError: what the script raises.
        CancelledError: the caller was cancelled; the script closes what it has opened.
    """
    try:
        return await _rest(channel, script, advance(script))
    except asyncio.CancelledError:
        ending = asyncio.create_task(_end(channel, script))
        _ending.add(ending)
        ending.add_done_callback(_ending.discard)
        raise


async def _rest(channel: Channel, script: Script[T], step: Exchange | Ended[T]) -> T:
    while isinstance(step, Exchange):
        try:
            answers = await _exchange(channel, step)
        except Exception as error:
            step = advance(script, error=error)
        else:
            step = advance(script, answers)
    return step.result


async def _end(channel: Channel, script: Script[Any]) -> None:
    """Tell a script that its answer is lost, and play what it does then; its errors are nobody's any more."""
    lost = Disconnected("the call was cancelled before its answer came; whether it was executed is not known")
    with contextlib.suppress(VmmdError):
        await _rest(channel, script, advance(script, error=lost))


async def _exchange(channel: Channel, exchange: Exchange) -> list[Answer]:
    if exchange.timeout_s is not None:
        channel = channel.with_timeout(exchange.timeout_s)
    if len(exchange.calls) == 1:
        try:
            return [Answer(await channel.send(exchange.calls[0]))]
        except RpcError as error:
            return [Answer(error=error)]
    replies = [Reply(call) for call in exchange.calls]
    await channel.send_batch(replies)
    return [Answer(error=reply.error) if reply.error else Answer(reply.result()) for reply in replies]
