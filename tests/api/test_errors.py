"""Error data: names of errnos, and what later daemons may add."""

import errno

import pytest

from vmmd.api.errors import ErrorData, errno_name


@pytest.mark.parametrize("name", ["EEXIST", "EBADF", "EDEADLK", "EAGAIN", "ESTALE", "EOPNOTSUPP", "ECANCELED"])
def test_an_errno_has_the_name_that_the_documents_use(name: str) -> None:
    assert errno_name(getattr(errno, name)) == name


@pytest.mark.parametrize("code", [0, -32601, 4096])
def test_what_is_no_errno_has_no_name(code: int) -> None:
    assert errno_name(code) is None


def test_error_data_keeps_what_it_does_not_know() -> None:
    data = ErrorData.model_validate({"errno": "ESTALE", "ioctl": "KVM_RUN", "generation": 7})
    assert (data.errno, data.rolled_back, data.model_extra) == ("ESTALE", False, {"generation": 7})
