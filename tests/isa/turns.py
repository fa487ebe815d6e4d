"""Runs a vCPU on an engine, over the turns after which an engine lets others have the thread."""

from __future__ import annotations

from vmmd.isa.context import Context
from vmmd.isa.engine import Engine, Ran
from vmmd.isa.evaluate import Pending
from vmmd.isa.stop import Stop
from vmmd.memory.view import View


def run(engine: Engine, context: Context, view: View, pending: Pending | None = None) -> Ran:
    """Run until something other than a turn ends it; a turn uses up some of the budget, so that it does end."""
    while True:
        before = context.record.budget
        ran = engine.run(context, view, pending)
        if not isinstance(ran, Stop):
            engine.leave(context)
        if ran is not Stop.TURN:
            return ran
        assert context.record.budget < before, "a turn in which nothing was done"
        pending = None
