import re

import pytest

from vmmd_client import Address, ConnectError


@pytest.mark.parametrize(
    ("url", "websocket", "socket_path", "endpoint"),
    [
        ("unix:///run/vmmd.sock", False, "/run/vmmd.sock", "http://localhost/rpc"),
        ("ws+unix:///run/vm%20md.sock", True, "/run/vm md.sock", "ws://localhost/ws"),
        ("http://127.0.0.1:8471", False, None, "http://127.0.0.1:8471/rpc"),
        ("https://vmm.example/", False, None, "https://vmm.example/rpc"),
        ("ws://[::1]:8471", True, None, "ws://[::1]:8471/ws"),
        ("wss://vmm.example", True, None, "wss://vmm.example/ws"),
    ],
)
def test_each_form_of_a_url_names_a_way_and_an_endpoint(
    url: str, websocket: bool, socket_path: str | None, endpoint: str
):
    address = Address.parse(url)
    assert (address.websocket, address.socket_path) == (websocket, socket_path)
    assert (address.ws_url if websocket else address.rpc_url) == endpoint


@pytest.mark.parametrize(
    "url",
    [
        "",
        "ws:///run/x",
        "ws+unix://run/x",
        "unix:x",
        "http://host:port",
        "http://[",
        "tcp://h",
        "unix:///run/x?y",
        "http://h:1/a",
        "ws://h/a",
        "http://h?a",
    ],
)
def test_a_url_of_another_form_is_an_error_that_shows_all_forms(url: str):
    with pytest.raises(ConnectError, match=r"unix:///path.*http://host.*ws\+unix:///path.*ws://host"):
        Address.parse(url)


def test_a_server_without_the_endpoint_is_asked_what_it_is():
    address = Address.parse("ws://127.0.0.1:80")
    assert address.refused(404, b"Not Found").endswith(
        "HTTP 404: Not Found; is it a vmmd, and of this library's version?"
    )
    assert address.refused(401, b"give a token").endswith("HTTP 401: give a token")


@pytest.mark.parametrize(
    "url",
    [
        *("http://u:secret@h:80", "ws://secret@h", "http://u:sec/secret@h", "unix://u:secret@/run/x", "u:secret@h"),
        *("tcp://u:secret@h", "http://u:secret@[", "http://u:@secret@h:1/p"),
    ],
)
def test_a_password_in_a_url_is_refused_and_never_shown(url: str):
    with pytest.raises(ConnectError) as caught:
        Address.parse(url)
    assert "secret" not in str(caught.value)


def test_a_path_of_a_socket_may_have_an_at_and_is_shown():
    assert Address.parse("unix:///run/vm@1.sock").socket_path == "/run/vm@1.sock"
    with pytest.raises(ConnectError, match=re.escape("/run/vm@1.sock")):
        Address.parse("/run/vm@1.sock")
