"""Plays scripts over a channel: what they want sent is sent, and they are told what came of it.

A script knows what to do where an answer is lost, so no change of its is sent twice: a daemon that remembers answers by
`request_id` may have forgotten a large one, and a dirty bitmap that was taken cannot be taken again.

A script that is cancelled in the middle of a round trip is told that its answer is lost, and goes on to its end: what
it has opened it closes. A further cancellation ends the wait for that alone.
"""

from dataclasses import replace

from ..errors import Disconnected, RpcError
from ..wire.channel import Channel, Reply
from ..wire.waiting import try_to_its_end
from .script import Answer, Ended, Exchange, Script, T, advance


async def play(channel: Channel, script: Script[T]) -> T:
    """Play a script to its end and give its result.

    Raises:
        VmmdError: what the script raises.
        BaseException: the caller was cancelled; the script has closed what it had opened.
    """
    try:
        return await _rest(channel, script, advance(script))
    except Exception:
        raise
    except BaseException:
        await try_to_its_end(lambda: _end(channel, script))
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


async def _end(channel: Channel, script: Script[T]) -> T:
    """Tell a script that its answer is lost, and play what it does then."""
    lost = Disconnected("the call was cancelled before its answer came; whether it was executed is not known")
    return await _rest(channel, script, advance(script, error=lost))


async def _exchange(channel: Channel, exchange: Exchange) -> list[Answer]:
    if exchange.timeout_s is not None:
        channel = channel.with_timeout(exchange.timeout_s)
    calls = [replace(call, may_be_named=False) for call in exchange.calls]
    if len(calls) == 1:
        try:
            return [Answer(await channel.send(calls[0]))]
        except RpcError as error:
            return [Answer(error=error)]
    replies = [Reply(call) for call in calls]
    await channel.send_batch(replies)
    return [Answer(error=reply.error) if reply.error else Answer(reply.result()) for reply in replies]
