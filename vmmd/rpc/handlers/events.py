"""Events, and the ends of calls: what only a WebSocket can ask for."""

import errno

from vmmd.api import events
from vmmd.kvm.errors import KvmError
from vmmd.rpc.caller import Connection
from vmmd.rpc.handlers.registry import Core, handles, handles_at_once
from vmmd.rpc.handlers.subscription import Subscription
from vmmd.rpc.jsontext import encode
from vmmd.rpc.scope import BodyScope


@handles("events.subscribe")
async def _subscribe(core: Core, params: events.SubscribeParams, scope: BodyScope) -> events.SubscribeResult:
    if params.vm is not None:
        core.vm(params)
    connection = _connection(scope, "events.subscribe", "events are sent there as notifications")
    journal = core.journal
    is_of_another_epoch = params.epoch is not None and params.epoch != journal.epoch
    after = journal.last if params.since is None else params.since
    if after > journal.last and not is_of_another_epoch:
        raise KvmError(
            errno.EINVAL,
            f"since {after}: the last event has seq {journal.last}; where the number is of an earlier start of the "
            "daemon, give the epoch that came with it",
            seq=journal.last,
            epoch=journal.epoch,
        )
    connection.subscribe(Subscription(journal, params.vm, after, is_of_another_epoch=is_of_another_epoch))
    return events.SubscribeResult(seq=journal.last, oldest=journal.oldest, epoch=journal.epoch)


@handles_at_once("rpc.cancel")
def _cancel(_core: Core, params: events.CancelParams, scope: BodyScope) -> events.CancelResult:
    connection = _connection(scope, "rpc.cancel", "over HTTP a call is cancelled by closing its connection")
    return events.CancelResult(cancelled=connection.cancel(encode(params.id)))


def _connection(scope: BodyScope, method: str, why: str) -> Connection:
    """Give the WebSocket that a call came by.

    Raises:
        KvmError: EOPNOTSUPP; it came over HTTP.
    """
    if scope.caller.connection is None:
        raise KvmError(errno.EOPNOTSUPP, f"{method} needs a WebSocket, at /ws: {why}")
    return scope.caller.connection
