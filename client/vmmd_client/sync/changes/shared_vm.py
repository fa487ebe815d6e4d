"""What all handles of one client on one VM share: what is known of its slots, its dirty view, and whose turn it is.

Transactions, holds and readers of the dirty view take turns, so that within one client none finds the map changed by
another of them. Another client has all of this for itself: it reads dirty bits of its own, and its changes are noticed
by the generation. Nothing here asks the daemon.
"""

# Made of ../../changes/shared_vm.py by `python -m tests.client.twin`: change that one.

from weakref import WeakKeyDictionary

from ...changes.dirty import DirtyView
from ...slots.memslots import SlotTable
from ...wire.protocol import Dialogue
from ..wire.channel import Channel
from ..wire.waiting import Turn


class SharedVm:
    """One VM as one client knows it.

    Attributes:
        table: the slot table; None where it has to be fetched.
        view: the dirty bits that wait for their reader.
        turn: whose turn it is to change the map, or to read its dirty bits.
    """

    def __init__(self) -> None:
        self.table: SlotTable | None = None
        self.view = DirtyView()
        self.turn = Turn()


# Channels over one transport share their dialogue. Bits that wait outlive the handle that has taken them.
_known: WeakKeyDictionary[Dialogue, dict[str, SharedVm]] = WeakKeyDictionary()


def shared_vm(channel: Channel, vm: str) -> SharedVm:
    """Give what the handles of a channel's client share of a VM."""
    return _known.setdefault(channel.dialogue, {}).setdefault(vm, SharedVm())


def forget_vm(channel: Channel, vm: str) -> None:
    """Have the next handle begin anew: the VM is new, or has gone, and a daemon gives an id again after a restart."""
    _known.setdefault(channel.dialogue, {}).pop(vm, None)
