"""The synchronous twin's sockets where nobody takes the connection, and where a thread is interrupted on one."""

import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, Request

from vmmd_client import CallTimeout, ConnectTimeout, Disconnected, sync
from vmmd_client.sync.wire.sockets import Deadline
from vmmd_client.sync.wire.websocket import SocketLink
from vmmd_client.wire.address import Address


def test_each_thread_has_its_own_time_while_the_first_one_opens_the_websocket(tmp_path: Path):
    with socket.socket(socket.AF_UNIX) as stopped, ThreadPoolExecutor() as threads:
        stopped.bind(str(tmp_path / "stopped"))
        stopped.listen(8)
        vmmd = sync.connect(f"ws+unix://{tmp_path}/stopped", timeout_s=0.05)
        asked = [threads.submit(vmmd.daemon.get_info) for _ in range(4)]
        assert {type(call.exception()) for call in asked} == {CallTimeout}
        vmmd.close()


def test_a_call_by_http_waits_for_its_connection_no_longer_than_for_its_answer():
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        host, port = full.getsockname()
        with (
            socket.create_connection((host, port)),
            pytest.raises(ConnectTimeout, match=r"within (?!5 s)"),
            sync.connect(f"http://{host}:{port}", timeout_s=0.05) as vmmd,
        ):
            vmmd.daemon.get_info()


def test_an_interrupted_send_is_the_last_on_its_websocket():
    ours, theirs = socket.socketpair()
    link = SocketLink(ours, Address.parse("ws+unix:///nobody"))

    def open_and_interrupt() -> None:
        server = WSConnection(ConnectionType.SERVER)
        server.receive_data(theirs.recv(1 << 16))
        assert [type(event) for event in server.events()] == [Request]
        theirs.sendall(server.send(AcceptConnection()))
        # The message has begun to come, and will not fit.
        theirs.recv(1, socket.MSG_PEEK)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    with theirs, ThreadPoolExecutor() as threads:
        opened = threads.submit(open_and_interrupt)
        link.shake_hands({}, Deadline(20))
        with pytest.raises(KeyboardInterrupt):
            link.send(b"x" * (64 << 20))
        opened.result()
        with pytest.raises(Disconnected):
            link.send(b"{}")
        link.close()
