import copy
import errno
import inspect
import pickle

import pytest

from vmmd.api.methods import METHODS
from vmmd_client import errors
from vmmd_client.errors import (
    AlreadyExists,
    HoldConflict,
    HoldFailed,
    Interrupted,
    InvalidArgument,
    InvalidParams,
    KickTimeout,
    KvmError,
    NoSuchSlot,
    RpcError,
    SlotOverlap,
    StaleGeneration,
    TooManyVms,
    UnknownMethod,
    VmmdError,
    rpc_error,
)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.ESTALE, StaleGeneration),
        (errno.EBUSY, HoldConflict),
        (errno.ECANCELED, HoldFailed),
        (errno.ETIMEDOUT, KickTimeout),
        (errno.ENOENT, NoSuchSlot),
        (errno.EEXIST, AlreadyExists),
        (errno.EMFILE, TooManyVms),
        (errno.ENOSPC, KvmError),
        (-32601, UnknownMethod),
        (-32602, InvalidParams),
        (-32603, RpcError),
        (-32768, RpcError),
        (-32000, RpcError),
    ],
)
def test_each_code_has_its_class(code: int, kind: type[RpcError]):
    assert type(rpc_error(code, "why")) is kind


def test_eexist_of_the_slot_ioctl_is_an_overlap_that_is_also_an_already_exists():
    error = rpc_error(errno.EEXIST, "why", {"errno": "EEXIST", "ioctl": "KVM_SET_USER_MEMORY_REGION"})
    assert isinstance(error, SlotOverlap)
    assert isinstance(error, AlreadyExists)
    assert error.ioctl == "KVM_SET_USER_MEMORY_REGION"


def test_an_errno_error_says_its_name_and_its_reason():
    error = rpc_error(errno.EINVAL, "the size 5 is no whole number of pages", {"errno": "EINVAL"})
    assert str(error) == "EINVAL: the size 5 is no whole number of pages"


@pytest.mark.parametrize("data", [None, "text", 5, ["list"], {}])
def test_error_data_of_any_shape_is_taken(data: object):
    error = rpc_error(errno.EINVAL, "why", data)
    assert isinstance(error, KvmError)
    assert (error.errno, error.ioctl, error.rolled_back, error.data) == ("EINVAL", None, False, data)


def test_every_errno_of_the_method_table_has_a_class_of_its_own():
    names = {name for method in METHODS.values() for name in method.all_errors}
    kinds = {name: type(rpc_error(getattr(errno, name), "why", {"errno": name})) for name in names}
    assert [name for name, kind in kinds.items() if kind is KvmError] == []
    assert len(set(kinds.values())) == len(names)


def test_the_numbers_of_an_errors_data_are_fields():
    stale = rpc_error(errno.ESTALE, "why", {"errno": "ESTALE", "generation": 9})
    interrupted = rpc_error(errno.EINTR, "why", {"errno": "EINTR", "exit_reason": "KVM_EXIT_MMIO", "kicked": True})
    ended = rpc_error(errno.ECANCELED, "why", {"became": "was resumed", "rolled_back": True})
    invalid = rpc_error(errno.EINVAL, "why", {"line": 3, "column": 5, "index": 2})
    assert isinstance(stale, StaleGeneration)
    assert stale.generation == 9
    assert isinstance(interrupted, Interrupted)
    assert (interrupted.exit_reason, interrupted.kicked) == ("KVM_EXIT_MMIO", True)
    assert isinstance(ended, HoldFailed)
    assert (ended.became, ended.rolled_back) == ("was resumed", True)
    assert isinstance(invalid, InvalidArgument)
    assert (invalid.line, invalid.column, invalid.index) == (3, 5, 2)


@pytest.mark.parametrize("data", [None, {"generation": "9"}, ["generation"]])
def test_a_field_that_cannot_be_read_is_none(data: object):
    error = rpc_error(errno.ESTALE, "why", data)
    assert isinstance(error, StaleGeneration)
    assert error.generation is None


def test_an_unknown_method_says_that_one_side_is_older():
    assert "another version" in str(rpc_error(-32601, "there is no method vm.frobnicate"))


def test_every_exception_stands_in_the_drawn_tree_in_its_place():
    drawing = (errors.__doc__ or "").splitlines()
    indents = {
        line.strip("│├└─ ").split()[0]: len(line) - len(line.lstrip("│├└─ ")) for line in drawing if line.strip()
    }
    for name, kind in inspect.getmembers(errors, inspect.isclass):
        if issubclass(kind, VmmdError) and kind.__module__ == errors.__name__ and kind is not VmmdError:
            assert indents[name] == indents[kind.__mro__[1].__name__] + 4, name


@pytest.mark.parametrize(
    "error",
    [
        rpc_error(errno.ESTALE, "moved on", {"errno": "ESTALE", "generation": 7}),
        rpc_error(-32602, "wrong"),
        errors.SlotTaken("taken", 3),
        errors.Misaligned("crooked", "by", 5),
        errors.UnsendableParam("vm.run", "data", "it is text"),
        errors.TurnTimeout("a hold", 2.5),
        errors.UnusableToken("it is empty"),
        errors.HttpRefused("no", 401),
        errors.Disconnected("gone", 1009),
        errors.VersionMismatch(13, 12),
        errors.TransactionRefused(1, "delete slot 0", "nothing was done", rolled_back=True),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_goes_to_another_process_with_its_fields(error: VmmdError):
    error.outcome = errors.Outcome.NOTHING_DONE
    error.add_note("while testing")
    for copied in (pickle.loads(pickle.dumps(error)), copy.copy(error)):  # noqa: S301 -- our own bytes
        assert type(copied) is type(error)
        assert str(copied) == str(error)
        assert vars(copied) == vars(error)
