"""The kernel is the judge: fresh sequences, asked of this machine's KVM and of vmmd. The rest is `make conformance`."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from functools import partial

import pytest

from tests.conformance.askable import Askable
from tests.conformance.compare import Tally
from tests.conformance.generate import sequences
from tests.conformance.host import NotAskableError, ask_host
from tests.conformance.kernel import Kvm
from tests.conformance.live import Found, Live
from tests.conformance.oracle import ask_kernel
from tests.conformance.subjects import in_process
from vmmd.kvm.system import System

FIXED_SEED = "vmmd"
SEQUENCES = 80
"""Of each seed, on each engine."""


@pytest.fixture(scope="module")
def askable() -> Askable:
    try:
        return Askable(ask_host())
    except NotAskableError as reason:
        pytest.skip(f"the kernel cannot be asked: {reason}")


@pytest.fixture
def live(askable: Askable, system: System) -> Iterator[Live]:
    with Kvm() as kvm:
        yield Live(partial(ask_kernel, kvm, askable.windows), partial(in_process, system), askable)


def said(found: list[Found]) -> str:
    return "\n\n".join(
        f"sequence {each.sequence['id']}, comes again: {each.comes_again}\n"
        f"{json.dumps(each.shortest)}\n{each.difference}"
        for each in found
    )


@pytest.mark.parametrize("seed", [FIXED_SEED, None], ids=["fixed seed", "fresh seed"])
async def test_vmmd_answers_as_this_machines_kvm(live: Live, askable: Askable, seed: str | None) -> None:
    # The sequence's name in a failure begins with the seed; `make conformance ARGS='--seed …'` draws it again.
    seed = seed or secrets.token_hex(4)
    tally = Tally()
    found = await live.ask_all(sequences(askable, seed, SEQUENCES), tally)
    assert not found, f"seed {seed}: {said(found)}"
    assert tally.sequences == SEQUENCES
    assert tally.refused > SEQUENCES
