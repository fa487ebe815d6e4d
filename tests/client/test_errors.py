import errno
import inspect

import pytest

from vmmd_client import errors
from vmmd_client.errors import (
    AlreadyExists,
    HoldConflict,
    HoldFailed,
    KickTimeout,
    KvmError,
    NoSuchSlot,
    RpcError,
    SlotOverlap,
    StaleGeneration,
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
        (errno.EMFILE, KvmError),
        (-32601, RpcError),
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


def test_every_exception_stands_in_the_drawn_tree_in_its_place():
    drawing = (errors.__doc__ or "").splitlines()
    indents = {
        line.strip("│├└─ ").split()[0]: len(line) - len(line.lstrip("│├└─ ")) for line in drawing if line.strip()
    }
    for name, kind in inspect.getmembers(errors, inspect.isclass):
        if kind.__module__ == errors.__name__ and kind is not VmmdError:
            assert indents[name] == indents[kind.__mro__[1].__name__] + 4, name
