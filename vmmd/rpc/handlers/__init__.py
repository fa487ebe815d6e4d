"""Wire to core and back: one small function a method, and nowhere else do the two meet.

A handler takes a call's parameters, asks the core, and gives the result's model; it decides nothing. Handlers lie in a
file a room, as the models in `vmmd.api` do, and their summaries are the table's. Those that need not wait are plain
functions. What all methods share is here once: `if_generation`, and the translation of the core's errors. Handlers and
table are the same, one for one: an import fails where they are not.
"""

from collections.abc import Coroutine
from contextlib import suppress
from functools import partial
from typing import Any

from vmmd.api.methods import METHODS, Method
from vmmd.api.types import GateOptions, Params, RequestOptions
from vmmd.kvm.errors import KvmError
from vmmd.kvm.hold import RESUMED
from vmmd.rpc.errors import CallError
from vmmd.rpc.handlers import events, holds, isa, machine, memory, memslots, system, vcpus
from vmmd.rpc.handlers.registry import HANDLERS, HANDLERS_AT_ONCE, HAS_TO_WAIT, About, Core
from vmmd.rpc.handlers.translate import EarlyError, call_error
from vmmd.rpc.results import Encoded, encode_result
from vmmd.rpc.scope import BodyScope

__all__ = ["About", "Core", "execute", "execute_at_once"]

_ROOMS = (events, holds, isa, machine, memory, memslots, system, vcpus)

_HANDLED = HANDLERS.keys() | HANDLERS_AT_ONCE.keys()

if METHODS.keys() != _HANDLED:
    raise RuntimeError(f"methods without a handler, or handlers without a method: {_HANDLED ^ METHODS.keys()}")


def execute(core: Core, method: Method, params: Params, scope: BodyScope) -> Coroutine[Any, Any, bytes]:
    """Carry out one checked call.

    Args:
        core: The core.
        method: The row of the table.
        params: Its checked parameters.
        scope: What the calls of its body share.

    Returns:
        The JSON text of its result. A member that the handler left unset is not in it.

    Raises:
        CallError: The core refused; the code is the errno's number.
    """
    if isinstance(params, RequestOptions) and params.request_id is not None:
        return _carry_out_once(core, method, params, scope)
    return _carry_out(core, method, params, scope)


def execute_at_once(core: Core, method: Method, params: Params, scope: BodyScope) -> bytes | None:
    """Carry out one checked call here and now.

    Returns:
        The JSON text of its result; None, with nothing done, where the call has to wait: `execute` does it then.

    Raises:
        CallError: The core refused; the code is the errno's number.
    """
    handler = HANDLERS_AT_ONCE.get(method.name)
    if handler is None or vars(params).get("request_id") is not None:
        return None
    try:
        _check_generation(core, method, params)
        result = handler(core, params, scope)
    except KvmError as error:
        raise _refusal(core, method, params, error) from None
    if isinstance(result, Encoded):
        return result
    return None if result is HAS_TO_WAIT else method.result_adapter.serializer.to_json(result, exclude_unset=True)


async def _carry_out_once(core: Core, method: Method, params: RequestOptions, scope: BodyScope) -> bytes:
    carry_out = partial(_carry_out, core, method, params, scope)
    try:
        return await core.requests.once(method, params, partial(_stands, core, params), carry_out)
    except KvmError as error:
        raise call_error(error, method) from None


async def _carry_out(core: Core, method: Method, params: Params, scope: BodyScope) -> bytes:
    try:
        # No await lies between this check and the handler's start: what was checked still holds there.
        _check_generation(core, method, params)
        at_once = HANDLERS_AT_ONCE.get(method.name)
        result = HAS_TO_WAIT if at_once is None else at_once(core, params, scope)
        if result is HAS_TO_WAIT:
            result = await HANDLERS[method.name](core, params, scope)
    except KvmError as error:
        raise _refusal(core, method, params, error) from None
    return await encode_result(method.result_adapter, result, at_once=scope.is_holding)


def _stands(core: Core, params: Any) -> bool:
    """Tell whether what a call has done was not undone with the hold that it was inside, or that it opened."""
    hold = getattr(params, "hold", None)
    if hold is None:
        return True
    try:
        return core.vm(params).hold_became(hold) in (None, RESUMED)
    except KvmError:
        # The VM is gone, and with it the difference.
        return True


def _check_generation(core: Core, method: Method, params: Params) -> None:
    # A gated call is checked at the gate, behind its wait.
    if_generation: int | None = vars(params).get("if_generation")
    if if_generation is not None and not method.gated:
        core.vm(params).check_generation(if_generation)


def _refusal(core: Core, method: Method, params: Params, error: KvmError) -> CallError:
    """Give what a call answers with that was refused."""
    if isinstance(error, EarlyError):
        _fail_hold(core, params, error)
    return call_error(error, method)


def _fail_hold(core: Core, params: Params, error: KvmError) -> None:
    """Fail the hold that a call names, as the core does for what it refuses itself."""
    if isinstance(params, GateOptions) and params.hold is not None:
        # A hold whose kick is still under way lets nobody in, so nothing inside it has failed.
        with suppress(KvmError):
            core.vm(params).fail_hold(params.hold, error)
