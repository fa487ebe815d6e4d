"""Starts `vmmctl` in a few milliseconds: a process that has the client imported is forked for each command.

Importing costs a second of a busy core, and the documents have many commands. `main` is the process; `SHIM` is the
program that stands for `vmmctl` on the path: it hands over its arguments, environment, folder and descriptors, and ends
with the command's status.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import sys
import traceback

from vmmd_client.cli import main as vmmctl
from vmmd_client.cli.group import COMMANDS

SHIM = """#!{python} -SE
import json, os, socket, sys
peer = socket.socket(socket.AF_UNIX)
peer.connect({address!r})
socket.send_fds(peer, [b"f"], [0, 1, 2])
peer.sendall(json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode())
peer.shutdown(socket.SHUT_WR)
status = peer.recv(8)
sys.exit(int(status) if status else 70)
"""


def main(address: str) -> None:
    """Serve commands on a UNIX socket until the process is ended."""
    for module in {module for module, _ in COMMANDS.values()}:
        importlib.import_module(f"vmmd_client.cli.{module}")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(64)
        print("ready", flush=True)  # noqa: T201
        while True:
            peer, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                _serve(peer)
            peer.close()


def _serve(peer: socket.socket) -> None:
    _, descriptors, _, _ = socket.recv_fds(peer, 1, 3)
    with peer.makefile("rb") as asked:
        arguments, folder, environment = json.load(asked)
    for target, descriptor in enumerate(descriptors):
        os.dup2(descriptor, target)
        os.close(descriptor)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    status = 70
    try:
        vmmctl(arguments, "vmmctl")
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    peer.sendall(str(status).encode())
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
