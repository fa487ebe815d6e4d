"""Plays scripts over a channel: what they want sent is sent, and they are told what came of it.

A script knows what to do where an answer is lost, so no change of its is sent twice: a daemon that remembers answers by
`request_id` may have forgotten a large one, and a dirty bitmap that was taken cannot be taken again.

A script that is cancelled in the middle of a round trip is told that its answer is lost, and goes on to its end: what
it has opened it closes. A further cancellation ends the wait for that alone.
"""

# Made of ../../changes/play.py by `python -m tests.client.twin`: change that one.

from dataclasses import replace

from ...changes.script import Answer, Ended, Exchange, Script, T, advance
from ...errors import Disconnected, RpcError
from ...wire.channel import Reply
from ..wire.channel import Channel
from ..wire.waiting import try_to_its_end


def play(channel: Channel, script: Script[T]) -> T:
    """Play a script to its end and give its result.

    Raises:
        VmmdError: what the script raises.
        BaseException: the caller was cancelled; the script has closed what it had opened.
    """
    try:
        return _rest(channel, script, advance(script))
    except Exception:
        raise
    except BaseException:
        try_to_its_end(lambda: _end(channel, script))
        raise


def _rest(channel: Channel, script: Script[T], step: Exchange | Ended[T]) -> T:
    while isinstance(step, Exchange):
        try:
            answers = _exchange(channel, step)
        except Exception as error:
            step = advance(script, error=error)
        else:
            step = advance(script, answers)
    return step.result


def _end(channel: Channel, script: Script[T]) -> T:
    """Tell a script that its answer is lost, and play what it does then."""
    lost = Disconnected("the call was cancelled before its answer came; whether it was executed is not known")
    return _rest(channel, script, advance(script, error=lost))


def _exchange(channel: Channel, exchange: Exchange) -> list[Answer]:
    if exchange.timeout_s is not None:
        channel = channel.with_timeout(exchange.timeout_s)
    calls = [replace(call, may_be_named=False) for call in exchange.calls]
    if len(calls) == 1:
        try:
            return [Answer(channel.send(calls[0]))]
        except RpcError as error:
            return [Answer(error=error)]
    replies = [Reply(call) for call in calls]
    channel.send_batch(replies)
    return [Answer(error=reply.error) if reply.error else Answer(reply.result()) for reply in replies]
