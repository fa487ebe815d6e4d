"""Where the daemon listens: the socket's mode, and what becomes of what lies at its path."""

import os
import socket
import stat
from pathlib import Path

import pytest

from vmmd.rpc.listen import BindError, UnixListener, bind_tcp, is_loopback, tcp_url, url_host


def test_the_socket_is_its_users_alone_from_the_start(tmp_path: Path) -> None:
    umask = os.umask(0o000)
    try:
        listener = UnixListener(tmp_path / "deep" / "vmmd.sock")
        assert os.umask(0o000) == 0o000
    finally:
        os.umask(umask)
    with listener.socket:
        assert stat.S_IMODE(listener.path.stat().st_mode) == 0o600
        assert stat.S_IMODE(listener.path.parent.stat().st_mode) == 0o700
        assert listener.url == f"unix://{tmp_path}/deep/vmmd.sock"
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(listener.path))
    listener.unlink()
    assert not listener.path.exists()


def test_a_socket_that_a_dead_daemon_left_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "vmmd.sock"
    UnixListener(path).socket.close()
    assert path.exists()
    with UnixListener(path).socket, socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def test_a_socket_that_a_living_daemon_answers_on_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "vmmd.sock"
    with UnixListener(path).socket:
        inode = path.stat().st_ino
        with pytest.raises(BindError, match="a daemon listens on"):
            UnixListener(path)
        assert path.stat().st_ino == inode


@pytest.mark.parametrize("kind", ["file", "directory", "link"])
def test_what_is_no_socket_is_never_removed(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "vmmd.sock"
    match kind:
        case "file":
            path.write_text("precious")
        case "directory":
            path.mkdir()
        case "link":
            (tmp_path / "other").write_text("precious")
            path.symlink_to(tmp_path / "other")
    with pytest.raises(BindError, match="is no socket"):
        UnixListener(path)
    assert os.path.lexists(path)


def test_a_path_that_cannot_be_bound_is_named(tmp_path: Path) -> None:
    with pytest.raises(BindError, match="--socket"):
        UnixListener(tmp_path / ("x" * 150))


def test_unlink_leaves_a_file_that_has_taken_the_sockets_place(tmp_path: Path) -> None:
    listener = UnixListener(tmp_path / "vmmd.sock")
    listener.socket.close()
    listener.path.rename(tmp_path / "moved")
    listener.unlink()
    listener.path.write_text("another's")
    listener.unlink()
    assert listener.path.read_text() == "another's"


def test_a_taken_port_is_named() -> None:
    with bind_tcp("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        assert tcp_url("127.0.0.1", taken) == f"http://127.0.0.1:{port}"
        with pytest.raises(BindError, match=f"port {port}"):
            bind_tcp("127.0.0.1", port)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost", "LocalHost"])
def test_these_are_the_machines_own_addresses(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.1", "example.com", "localhost.example.com", ""])  # noqa: S104
def test_these_are_not(host: str) -> None:
    assert not is_loopback(host)


def test_an_ipv6_address_stands_in_brackets_in_a_url() -> None:
    assert url_host("::1") == "[::1]"
    assert url_host("Example.COM") == "example.com"
