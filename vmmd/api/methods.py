"""The one table of methods: what can be asked, with which parameters, and what can come back.

Dispatcher, handlers, client and documents read this table; a method that is not in it does not exist. Its rows stand
beside the models that they name, a room at a time. The gate is a column of it because the parameters of a gated method
carry the gate's options.
"""

from collections.abc import Mapping

from vmmd.api import events, holds, isa, machine, memory, memslots, system, vcpus
from vmmd.api.method import Method

__all__ = ["METHODS", "Method"]

_ROOMS = (system, memory, memslots, holds, vcpus, machine, isa, events)

METHODS: Mapping[str, Method] = {method.name: method for room in _ROOMS for method in room.ROWS}
"""Every method by its name on the wire."""
