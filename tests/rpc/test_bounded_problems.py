"""However much is wrong with a call, little of it is collected: a small body must not take seconds and gigabytes."""

from typing import Any

import pytest
from pydantic import ValidationError

from vmmd.api.codes import INVALID_PARAMS
from vmmd.api.methods import METHODS
from vmmd.rpc.errors import CallError
from vmmd.rpc.parameters import check_params

MANY = 300_000
NAMES = {f"q{number}": 0 for number in range(MANY)}
REGION = {"slot": 0, "flags": 0, "guest_phys_addr": 0, "memory_size": 0, "userspace_addr": 0}

HOSTILE = [
    ("vm.set_user_memory_region_list", {"vm": "vm1", "regions": [{}] * MANY}, "has more than 65536 entries"),
    ("vm.set_user_memory_region_list", {"vm": "vm1", "regions": [{}] * 65_536}, "regions.0.slot: is missing"),
    ("vm.set_user_memory_region_list", {"vm": "vm1", "regions": [REGION, REGION | NAMES]}, "entry 1 has the member"),
    ("vm.set_user_memory_region", REGION | {"vm": "vm1", "flags": [0] * MANY}, "at most 32 names"),
    ("vm.enable_cap", {"vm": "vm1", "cap": "c", "args": ["x"] * MANY}, "has more than 4 entries"),
    ("vcpu.set_regs", {"vm": "vm1", "vcpu": 0, "regs": NAMES}, "has more than 128 entries"),
    ("vm.stop", {"vm": "vm1"} | NAMES, "q0: is no parameter here"),
    ("vm.stop", [0] * MANY, f"{MANY} parameters by position"),
]


@pytest.mark.parametrize(("name", "given", "said"), HOSTILE)
def test_the_answer_is_short_and_names_the_bound(name: str, given: Any, said: str) -> None:
    with pytest.raises(CallError) as caught:
        check_params(METHODS[name], given)
    assert caught.value.code == INVALID_PARAMS
    assert said in caught.value.message
    assert len(caught.value.text(b"1")) < 5000


@pytest.mark.parametrize(("name", "given", "said"), [row for row in HOSTILE if row[0] != "vm.stop"])
def test_the_models_collect_few_problems(name: str, given: Any, said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        METHODS[name].params.model_validate(given)
    assert caught.value.error_count() <= len(REGION), said
