"""The way in: `with connect(url) as vmmd`.

A `Client` is a channel to one daemon with the system level's methods on it. Entering it asks for the API version, as
any VMM does first, so that a daemon which is not there, or is another program, is an error at once and not at the first
call. Nothing runs in the background, and importing this does nothing.
"""

# Made of ../connection.py by `python -m tests.client.twin`: change that one.

import copy
import os
from types import TracebackType
from typing import Any, Literal, Self

from vmmd.api.isa import AssembleResult, Line
from vmmd.api.system import InfoResult, VmInfo

from ..errors import ConnectError, VersionMismatch
from ..events import Place
from ..wire import calls
from ..wire.address import Address
from ..wire.call_options import BytesLike
from ..wire.limits import DEFAULT_TIMEOUT_S
from ..wire.protocol import KVM_API_VERSION, Call, T
from ..wire.retry import DEFAULT_ATTEMPTS
from .changes.shared_vm import forget_vm
from .events import Events
from .vm import Vm
from .wire.channel import Batch, Channel
from .wire.http import HttpTransport
from .wire.transport import Transport
from .wire.websocket import WebSocketTransport


class Kvm:
    """The system level: what is asked of /dev/kvm."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def get_api_version(self) -> int:
        """KVM_GET_API_VERSION: 12."""
        return self._channel.send(calls.get_api_version())

    def check_extension(self, extension: str) -> int:
        """KVM_CHECK_EXTENSION: what a capability ("KVM_CAP_NR_MEMSLOTS") amounts to; 0 where vmmd does not have it."""
        return self._channel.send(calls.check_extension(extension))

    def create_vm(
        self,
        name: str | None = None,
        *,
        execution: Literal["parallel", "cooperative"] | None = None,
        seed: int | None = None,
    ) -> Vm:
        """KVM_CREATE_VM: a VM without memory and vCPUs.

        Args:
            name: a name for people; it need not be unique.
            execution: "parallel", the default: vCPUs run by themselves. "cooperative": by `Vm.advance` alone.
            seed: what decides the order of turns in a cooperative VM, 64 bits; left out: 0.

        Raises:
            KvmError: EMFILE, over the daemon's limit.
            InvalidArgument: a seed for a parallel VM.
        """
        vm = self._channel.send(calls.create_vm(name, execution, seed))
        forget_vm(self._channel, vm)
        return Vm(self._channel, vm)

    def destroy_vm(self, vm: str) -> None:
        """Destroy a VM by its id."""
        self._channel.send(calls.destroy_vm(vm))
        forget_vm(self._channel, vm)

    def list_vms(self) -> list[VmInfo]:
        """List the VMs, with what ended their run loops."""
        return self._channel.send(calls.list_vms())


class Isa:
    """The instruction set's tools."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def assemble(self, source: str, origin: int = 0) -> AssembleResult:
        """Assemble T64 source.

        Args:
            source: GNU as's syntax, a statement a line.
            origin: the guest-physical address of the first byte.

        Raises:
            InvalidArgument: the message and the data name line and column.
        """
        return self._channel.send(calls.assemble(source, origin))

    def disassemble(self, code: BytesLike, origin: int = 0) -> list[Line]:
        """Write code as T64 source, a word a line; assembled again it is the same code.

        Args:
            code: any bytes. A word that no mnemonic expresses is `.word`, one to three bytes at the end are `.byte`.
            origin: the guest-physical address of the first byte.

        Raises:
            InvalidArgument: the code does not end at the last address or before it.
            KvmError: E2BIG; the lines do not fit in the reply.
        """
        return self._channel.send(calls.disassemble(code, origin))


class Daemon:
    """The daemon itself."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def get_info(self) -> InfoResult:
        """Version, engine, limits, uptime."""
        return self._channel.send(calls.get_info())


class Client:
    """A client of one daemon; `connect` makes one for a URL.

    Attributes:
        kvm: the methods of the system level.
        isa: the assembler and the disassembler.
        daemon: the daemon's own methods.
    """

    def __init__(
        self, transport: Transport, *, timeout_s: float = DEFAULT_TIMEOUT_S, attempts: int = DEFAULT_ATTEMPTS
    ) -> None:
        """Take a transport, as `connect` does for a URL, and `testing.MemoryDaemon` for tests.

        Args:
            transport: what carries the bytes.
            timeout_s: how long each call may take, in seconds, beyond its own `deadline_ms`, `wait_ms` or `timeout_ms`.
            attempts: how often a call is sent at most, where a connection fails and a repetition is safe.

        Raises:
            UnusableArgument: fewer than one attempt, or a time that is not positive and finite.
        """
        self._use(Channel(transport, timeout_s=timeout_s, attempts=attempts))

    def _use(self, channel: Channel) -> None:
        self._channel = channel
        self.kvm = Kvm(self._channel)
        self.isa = Isa(self._channel)
        self.daemon = Daemon(self._channel)

    def with_timeout(self, timeout_s: float) -> "Client":
        """Give a client over the same connections whose calls may take `timeout_s` seconds each; close either."""
        client = copy.copy(self)
        client._use(self._channel.with_timeout(timeout_s))
        return client

    def __repr__(self) -> str:
        return f"Client({self._channel.transport!r})"

    def vm(self, vm: str) -> Vm:
        """Name a VM by its id; whether it exists is for the first call to tell."""
        return Vm(self._channel, vm)

    def call(self, method: str, /, **params: Any) -> Any:
        """Call any method, also one that this library does not know; parameters and result are in JSON's types.

        Raises:
            RpcError: the daemon answered with an error.
        """
        return self._channel.send(calls.raw(method, params))

    def send(self, call: Call[T]) -> T:
        """Send a call that was made with a function of `vmmd_client.calls`."""
        return self._channel.send(call)

    def batch(self) -> Batch:
        """Collect calls that go in one round trip: `with vmmd.batch() as batch`."""
        return Batch(self._channel)

    def events(self, vm: str | None = None, since: Place | None = None) -> Events:
        """Iterate over what happens in the daemon: `for event in vmmd.events()`.

        It goes on across lost connections, and shows where events are missing. As a block (`with vmmd.events() as
        events`) it subscribes on entering, before the calls in the block cause anything.

        Args:
            vm: the id of the one VM whose events are wanted; None: all.
            since: `Events.place` of an earlier iterator: what came behind it comes first. None: what happens from now.
        """
        return Events(self._channel, vm, since)

    def close(self) -> None:
        """Close every connection; idempotent. `with` does it. Calls under way are ClientClosed."""
        self._channel.close()

    def __enter__(self) -> Self:
        try:
            version = self.kvm.get_api_version()
            if version != KVM_API_VERSION:
                raise VersionMismatch(version, KVM_API_VERSION)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def connect(
    url: str, *, token: str | None = None, timeout_s: float = DEFAULT_TIMEOUT_S, attempts: int = DEFAULT_ATTEMPTS
) -> Client:
    """Make a client for a daemon's address; `with` connects it.

    Args:
        url: "unix:///run/vmmd.sock" or "http://127.0.0.1:8471"; for one WebSocket in place of HTTP,
            "ws+unix:///run/vmmd.sock" or "ws://127.0.0.1:8471" (see `address` and `websocket`).
        token: the bearer token that TCP wants.
        timeout_s: how long each call may take, in seconds, beyond its own `deadline_ms`, `wait_ms` or `timeout_ms`;
            `with_timeout` of a client, VM or vCPU gives a handle with another time.
        attempts: how often a call is sent at most, where a connection fails and a repetition is safe (see `retry`).

    Raises:
        ConnectError: the URL has another form; or, on entering, nobody listens there.
        UnusableArgument: fewer than one attempt, a time that is not positive and finite, or a token that no HTTP header
            can hold.
    """
    transport = WebSocketTransport(url, token) if Address.parse(url).websocket else HttpTransport(url, token)
    return Client(transport, timeout_s=timeout_s, attempts=attempts)


def from_env() -> Client:
    """Make a client as the environment says: `VMMD_URL`, and `VMMD_TOKEN` for TCP.

    Raises:
        ConnectError: VMMD_URL is not set.
    """
    url = os.environ.get("VMMD_URL")
    if not url:
        raise ConnectError("VMMD_URL is not set; set it to the URL that the daemon printed, unix:///… or http://…")
    token = os.environ.get("VMMD_TOKEN", "").strip()
    return connect(url, token=token or None)
