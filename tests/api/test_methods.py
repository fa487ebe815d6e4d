"""The table of methods: every row is whole, and says what its parameters say."""

import errno

import pytest

from vmmd.api.errors import errno_name
from vmmd.api.methods import METHODS, Method
from vmmd.api.types import ChangeOptions, GateOptions, RequestOptions, VmParams

ROWS = list(METHODS.values())
GATED = {
    "vm.map_host_memory",
    "vm.unmap_host_memory",
    "vm.read_host_memory",
    "vm.write_host_memory",
    "vm.read_guest_memory",
    "vm.write_guest_memory",
    "vm.set_user_memory_region",
    "vm.get_dirty_log",
    "vm.set_user_memory_region_list",
    "vm.clear_dirty_log",
    "vm.load_elf",
}

each_row = pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])


@each_row
def test_a_name_is_a_level_and_an_ioctl_in_snake_case(row: Method) -> None:
    level, _, name = row.name.partition(".")
    assert level in {"kvm", "vm", "vcpu", "isa", "daemon", "events", "rpc"}
    assert name.isidentifier()
    assert name.islower()
    assert level not in {"vm", "vcpu"} or issubclass(row.params, VmParams)
    assert (level == "vcpu") <= ("vcpu" in row.params.model_fields)


@each_row
def test_a_row_has_a_summary_and_every_parameter_a_description(row: Method) -> None:
    assert row.summary.endswith(".")
    for name, field in row.params.model_fields.items():
        assert field.description, name
    assert row.params.__doc__


@each_row
def test_what_changes_a_vm_takes_if_generation_and_what_reads_does_not(row: Method) -> None:
    assert issubclass(row.params, ChangeOptions) == (row.changes and issubclass(row.params, VmParams))


@each_row
def test_what_uses_memslots_is_gated_and_takes_the_gates_options(row: Method) -> None:
    assert row.gated == (row.name in GATED)
    assert row.gated == issubclass(row.params, GateOptions)


@each_row
def test_errors_are_errnos_that_exist_and_each_says_when(row: Method) -> None:
    for name, when in row.all_errors.items():
        assert errno_name(getattr(errno, name)) == name
        assert when.endswith("."), name


@each_row
def test_a_row_knows_the_errors_of_its_family(row: Method) -> None:
    expected = set(row.errors)
    expected |= {"EBADF"} if "vm" in row.params.model_fields else set()
    expected |= {"ESTALE"} if issubclass(row.params, ChangeOptions) else set()
    expected |= {"EBUSY", "ECANCELED", "EINVAL"} if row.gated else set()
    expected |= {"EINVAL"} if issubclass(row.params, RequestOptions) else set()
    expected |= {"ETIMEDOUT", "ECANCELED", "EAGAIN", "ESHUTDOWN"}
    assert set(row.all_errors) == expected


@each_row
def test_parameters_and_results_have_a_json_schema(row: Method) -> None:
    assert row.params.model_json_schema()["type"] == "object"
    assert row.result_adapter.json_schema(mode="serialization")


@each_row
def test_positions_name_every_parameter_once_and_required_ones_first(row: Method) -> None:
    positions = row.params.positions()
    assert sorted(positions) == sorted(row.params.model_fields)
    required = [row.params.model_fields[name].is_required() for name in positions]
    assert required == sorted(required, reverse=True)
