"""The kernel is the judge of dirty rings too: fresh sequences, asked of this machine's KVM and of vmmd."""

from __future__ import annotations

import random
import secrets

import pytest

from tests.conformance.askable import Askable
from tests.conformance.host import NotAskableError, ask_host
from tests.conformance.kernel import KVM_CAP_DIRTY_LOG_RING, Kvm
from tests.conformance.rings import draw, first_difference
from vmmd.kvm.system import System
from vmmd.kvm.uapi import CAPABILITIES

SEQUENCES = 60
"""Of each seed, on each engine."""


@pytest.mark.parametrize("seed", ["vmmd", None], ids=["fixed seed", "fresh seed"])
async def test_vmmds_rings_hold_what_this_machines_kvm_puts_in_its_own(system: System, seed: str | None) -> None:
    try:
        askable = Askable(ask_host())
    except NotAskableError as reason:
        pytest.skip(f"the kernel cannot be asked: {reason}")
    with Kvm() as kvm:
        most = CAPABILITIES["KVM_CAP_DIRTY_LOG_RING"]
        if kvm.check_extension(KVM_CAP_DIRTY_LOG_RING) != most:
            pytest.skip(f"this machine's KVM has no dirty rings of {most} bytes")
        seed = seed or secrets.token_hex(4)
        rng = random.Random(seed)
        for number in range(SEQUENCES):
            vm = system.create_vm()
            found = await first_difference(kvm, askable.windows, vm, draw(rng))
            await system.destroy_vm(vm.id)
            assert found is None, f"seed {seed}, sequence {number}: {found}"
