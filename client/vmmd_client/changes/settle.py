"""What became of a transaction whose answer is lost: how the daemon is asked, and what its word means.

A hold is known by its name, also for ten minutes after its end, so a transaction in a hold is asked for by name. The
question ends the hold as well: whatever is still open by that name is made to fail and is rolled back, and a name that
was never heard of is used up, so that a body that is late can do nothing any more. One call without a hold is asked for
by the table's generation. Pure, without I/O: see `script`.
"""

import enum

from vmmd.api.memslots import RegionsResult
from vmmd.api.types import U64_MAX

from ..errors import HoldConflict, HoldFailed, InvalidArgument, KickTimeout, KvmError, RpcError, TransactionUnsettled
from ..slots.memslots import Memslot, SlotMap
from ..wire import calls
from .dirty import DirtyView
from .script import Exchange, Script

ASK_TIMEOUT_S = 5.0
"""How long each question may take beyond the waits in it, in seconds: a daemon that hangs must not hang us too."""

_ATTEMPTS = 5

# What a resume says of a hold that was resumed with success.
_WAS_RESUMED = "was resumed"

# No table has this generation: the call that names it is refused, and fails its hold.
_NEVER = U64_MAX


class Became(enum.Enum):
    """What became of a hold."""

    DONE = "what was done inside stands"
    ROLLED_BACK = "nothing was done inside, or all of it was rolled back"


def what_became(vm: str, hold: str, wait_ms: int) -> Script[Became]:
    """Learn what became of a hold, and end it if it has not ended.

    Args:
        vm: the VM's id.
        hold: the hold's name.
        wait_ms: for how long its kick may stand in line, in milliseconds.

    Raises:
        TransactionUnsettled: it is still waiting for its turn.
        TransportError, ProtocolError: no answer came.
        KvmError: the VM is gone.
    """
    fails = calls.get_dirty_log(vm, 0, hold=hold, if_generation=_NEVER)
    question = (
        calls.kick_all_running_vcpus(vm, hold, wait_ms),
        fails,
        calls.resume_all_kicked_vcpus(vm, hold),
    )
    waits = calls.get_dirty_log(vm, 0, if_generation=_NEVER, wait_ms=wait_ms)
    for _ in range(_ATTEMPTS):
        kicked, _, resumed = yield Exchange(question, ASK_TIMEOUT_S)
        error = resumed.error
        became = ended_as(error)
        if became is not None:
            return became
        if isinstance(error, InvalidArgument) and isinstance(kicked.error, KickTimeout):
            # Somebody else was held all the while, and nobody by this name stands in line.
            return Became.ROLLED_BACK
        if not isinstance(kicked.error, HoldConflict):
            # It neither was rolled back nor waits: the VM is gone, or something is very wrong.
            resumed.result()
        # It stands in line, or waits for its vCPUs: wait until nobody is held, and ask again.
        yield Exchange((waits,), ASK_TIMEOUT_S)
    raise TransactionUnsettled(f"the hold {hold!r} is still waiting for its turn; whoever is held now takes too long")


def settle_all(vm: str, view: DirtyView, wait_ms: int) -> Script[None]:
    """Settle every transaction whose end the dirty view does not know.

    Raises:
        TransactionUnsettled, TransportError, ProtocolError, KvmError: see `what_became`; the rest stays unsettled.
    """
    for transaction in view.unsettled:
        became = yield from what_became(vm, transaction.hold, wait_ms)
        view.settle(transaction.hold, was_done=became is Became.DONE)


def was_done(vm: str, generation: int, before: SlotMap, after: SlotMap, lost: Exception) -> Script[int]:
    """Learn from the slot table whether a call was executed that was made for one generation alone.

    Args:
        vm: the VM's id.
        generation: the generation that the call named.
        before: the map of that generation.
        after: the map that the call makes.
        lost: why its answer is not here.

    Returns:
        The generation behind the call; it was executed.

    Raises:
        Exception: `lost`; the call was not executed.
        TransactionUnsettled: the table cannot be read, or others have changed it since.
    """
    try:
        [answer] = yield Exchange((calls.get_memory_regions(vm),), ASK_TIMEOUT_S)
        table: RegionsResult = answer.result()
    except Exception as error:
        raise TransactionUnsettled(
            f"the answer to a call is lost ({lost}), and the map could not be read ({error}); read it anew"
        ) from lost
    standing = map_of(table)
    if table.generation == generation + 1 and standing == dict(after):
        return table.generation
    if table.generation == generation and standing == dict(before):
        lost.add_note("nothing was done: the map is as it was")
        raise lost
    raise TransactionUnsettled(
        f"the answer to a call is lost ({lost}), and others have changed the map since; read it anew"
    ) from lost


def map_of(table: RegionsResult) -> dict[int, Memslot]:
    """Give the slot map that a table holds."""
    return {
        region.slot: Memslot(
            region.slot, region.flags, region.guest_phys_addr, region.memory_size, region.userspace_addr
        )
        for region in table.regions
    }


def ended_as(resumed: RpcError | None) -> Became | None:
    """Tell from the error of a hold's resume how the hold has ended; None where it does not say."""
    if isinstance(resumed, KvmError) and resumed.rolled_back:
        return Became.ROLLED_BACK
    became = resumed.data.get("became") if isinstance(resumed, HoldFailed) and isinstance(resumed.data, dict) else None
    if isinstance(became, str):
        return Became.DONE if became == _WAS_RESUMED else Became.ROLLED_BACK
    return None
