"""The settings: every key with its unit, its default and its bounds.

Where a key is given more than once, the command line wins over the environment (VMMD_PORT, VMMD_LIMITS__VMS), that over
the TOML file, and that over the default. A key that is not known here is refused, and so is a value out of its bounds:
nothing starts with settings that were not understood. `config/vmmd.toml` has every key with its default, for people.
"""

import os
import secrets
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from vmmd.api.names import HOST_NAME
from vmmd.api.places import default_socket, default_token_file, xdg_directory

_SHORTEST_TOKEN = 16


class ConfigError(Exception):
    """The settings cannot be used. The message has a line for each thing that is wrong."""


def default_cache_dir() -> Path:
    """Give vmmd in the user's cache directory."""
    return xdg_directory("XDG_CACHE_HOME", ".cache") / "vmmd"


class LogSettings(BaseModel):
    """What is logged, and how. The log goes to the standard error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description='The least level that is written. "debug" also logs calls that only read.'
    )
    format: Literal["auto", "console", "json"] = Field(
        default="auto",
        description='"console" for people, "json" for machines, "auto": console on a terminal, else json.',
    )
    calls_per_second: int = Field(
        default=100,
        ge=0,
        description="Calls that have a line of their own in a second. Of the others a line says how many there were.",
    )


class LimitSettings(BaseModel):
    """What anybody may ask for. An error that a limit causes names it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    vms: int = Field(default=64, ge=1, description="VMs at a time.")
    vcpus_per_vm: int = Field(default=1024, ge=1, le=1024, description="vCPUs of one VM; KVM has no more than 1024.")
    guest_memory_bytes: int = Field(
        default=64 << 30,
        ge=1 << 12,
        description="Host memory mapped for guests, in bytes, over all VMs. Pages cost nothing until they are touched.",
    )
    sparse_mapping_bytes: int = Field(
        default=64 << 40,
        ge=0,
        le=1 << 47,
        description="Sizes of sparse mappings, in bytes, over all VMs. They take addresses, touched or not.",
    )
    sparse_mapping_bytes_per_vm: int = Field(
        default=16 << 40, ge=0, le=1 << 47, description="The same of one VM. The largest memslot needs 8 TiB."
    )
    body_bytes: int = Field(default=8 << 20, ge=1 << 10, description="The largest request body, in bytes.")
    reply_bytes: int = Field(default=16 << 20, ge=1 << 12, description="The largest reply, in bytes.")
    unread_bytes: int = Field(
        default=64 << 20,
        ge=1 << 12,
        description="Answers that are made for one WebSocket, or over HTTP for one client, or wait to be read by it, "
        "in bytes. Calls inside a hold have as much of their own. A call whose answer may be large waits for its room.",
    )
    unread_ms: int = Field(
        default=30_000,
        ge=10,
        description="How long a peer may take nothing of an answer before it loses its connection, in milliseconds.",
    )
    batch_calls: int = Field(default=1000, ge=1, description="The calls of one batch.")
    connections: int = Field(default=2048, ge=1, description="Open connections, over all listeners.")
    calls_in_flight_per_client: int = Field(
        default=1024,
        ge=1,
        description="Requests under way of one client: of a process on the UNIX socket, of an address over TCP.",
    )
    idle_ms: int = Field(
        default=60_000,
        ge=1,
        description="How long a connection may take to send a request's head, or send nothing, in milliseconds.",
    )
    first_request_ms: int = Field(
        default=10_000,
        ge=1,
        description="How long a connection may take until a first request of its was let in, in milliseconds.",
    )
    body_wait_ms: int = Field(
        default=30_000, ge=1, description="How long a request's body may take to come in, in milliseconds."
    )
    drain_ms: int = Field(
        default=500,
        ge=0,
        description="How long calls under way may go on when the daemon is told to stop, in milliseconds.",
    )
    json_depth: int = Field(default=32, ge=4, le=100, description="Arrays and objects within one another in a request.")
    calls_in_flight: int = Field(default=256, ge=1, description="Calls under way of one WebSocket; a batch is one.")
    websocket_silence_ms: int = Field(
        default=30_000,
        ge=100,
        description="A WebSocket that has sent no frame for so long is pinged, and closed half of it later, in "
        "milliseconds.",
    )
    events: int = Field(
        default=10_000, ge=1, description="Past events that are kept, for readers that are slow or come back."
    )
    request_ids: int = Field(default=10_000, ge=1, description="Successes that are kept for repeats by request_id.")
    request_id_bytes: int = Field(
        default=64 << 20, ge=1 << 12, description="What their results may have together, in bytes."
    )
    request_id_ms: int = Field(
        default=600_000, ge=1, description="For how long a success is kept for a repeat, in milliseconds."
    )
    wait_ms: int = Field(
        default=1000, ge=0, description="How long a kick waits for its turn where it does not say, in milliseconds."
    )
    max_wait_ms: int = Field(default=60_000, ge=0, description="The longest wait_ms of a call, in milliseconds.")
    lease_ms: int = Field(
        default=5000,
        ge=1,
        description="How long a hold stays open without a renewal where its kick does not say, in milliseconds.",
    )
    max_lease_ms: int = Field(default=60_000, ge=1, description="The longest lease_ms of a hold, in milliseconds.")


class Settings(BaseSettings):
    """All settings. `load` makes them."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", env_prefix="VMMD_", env_nested_delimiter="__")

    socket: Path = Field(
        default_factory=default_socket,
        description="The UNIX socket's path. Its mode is 0600, and whoever can open it needs no token.",
    )
    port: int | None = Field(
        default=None, ge=0, le=65535, description="The TCP port; 0: any that is free. Left out: no TCP."
    )
    host: str = Field(
        default="127.0.0.1",
        min_length=1,
        description="The address that TCP is bound to. One not this machine's own needs a token set on purpose.",
    )
    token: SecretStr | None = Field(
        default=None,
        min_length=_SHORTEST_TOKEN,
        description="The bearer token for TCP, at least 16 characters. Left out: token_file.",
    )
    token_file: Path | None = Field(
        default=None,
        description="A file that holds the bearer token for TCP. Where it is missing, it is made, mode 0600.",
    )
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        default=("localhost", "127.0.0.1", "[::1]"),
        description="Host names, without ports, that TCP requests may be addressed to. The environment's has commas.",
    )
    allowed_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description='Origins ("https://console.example") whose pages may ask over TCP. The environment\'s has commas.',
    )
    engine: Literal["translated", "compiled", "evaluated"] = Field(
        default="translated",
        description='What executes guests: "translated" (an interpreter in machine code, and what runs often as '
        'machine code of its own), "compiled" (that interpreter alone) or "evaluated" (Python, the reference).',
    )
    cache_dir: Path = Field(default_factory=default_cache_dir, description="Where compiled engines are kept.")
    workers: int | None = Field(
        default=None, ge=1, le=1024, description="Threads that execute guests. Left out: as many as there are cores."
    )
    log: LogSettings = LogSettings()
    limits: LimitSettings = LimitSettings()

    @field_validator("allowed_hosts", "allowed_origins", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        """Take a list, or names with commas between them, as an environment variable has them."""
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("socket")
    @classmethod
    def _is_a_file(cls, value: Path) -> Path:
        if not value.name:
            raise ValueError(
                "the path of the socket's file is empty or a folder; leave the setting out for the default"
            )
        return value

    @field_validator("token", mode="before")
    @classmethod
    def _strip(cls, value: object) -> object:
        """Leave the blanks and the line end out that a file or a shell has put around it; no header could have them."""
        return value.strip() if isinstance(value, str) else value

    @field_validator("allowed_hosts")
    @classmethod
    def _lower(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for host in value:
            if not HOST_NAME.fullmatch(host):
                raise ValueError(
                    f"{host!r} is no host name by itself: no port, no '*', an IPv6 address in brackets; "
                    "name each host that requests may be addressed to"
                )
        return tuple(host.lower() for host in value)

    @field_validator("allowed_origins")
    @classmethod
    def _no_wildcard(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if "*" in value:
            raise ValueError("'*' would let every web page in; name the origins")
        return value


Layer = Literal["command line", "environment", "file"]
"""Where a setting can come from, the strongest first; else it is its default."""


def load(config: Path | None = None, command_line: dict[str, Any] | None = None) -> Settings:
    """Read the settings.

    Args:
        config: A TOML file; None: there is none.
        command_line: What the command line sets, by key.

    Raises:
        ConfigError: The file cannot be read, a key is unknown, or a value is out of its bounds.
    """
    return load_layers(config, command_line)[0]


def load_layers(
    config: Path | None, command_line: dict[str, Any] | None, *, environment: bool = True
) -> tuple[Settings, dict[Layer, dict[str, Any]]]:
    """Read the settings, and tell what each layer has set; see `load`.

    Args:
        config: A TOML file; None: there is none.
        command_line: What the command line sets, by key.
        environment: Whether VMMD_* are looked at.
    """
    layers: dict[Layer, dict[str, Any]] = {"command line": command_line or {}}
    from_file = _read_toml(config) if config is not None else {}

    class Layered(Settings):
        """The settings, with the file behind the command line and the environment."""

        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            layers["file"] = from_file
            file_settings = InitSettingsSource(settings_cls, from_file)
            if not environment:
                return init_settings, file_settings
            layers["environment"] = env_settings()
            return init_settings, env_settings, file_settings

    try:
        return Layered(**command_line or {}), layers
    except SettingsError as error:
        raise ConfigError(str(error)) from None
    except ValidationError as error:
        raise ConfigError("\n".join(_problem(details) for details in error.errors(include_url=False))) from None


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """Give the variables that look like settings and are none; VMMD_URL is the clients'."""
    known = {"VMMD_URL"}
    for name, field in Settings.model_fields.items():
        known.add(f"VMMD_{name.upper()}")
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            known |= {f"VMMD_{name.upper()}__{inner.upper()}" for inner in field.annotation.model_fields}
    return sorted(name for name in environment if name.upper().startswith("VMMD_") and name.upper() not in known)


def is_open_to_others(settings: Settings) -> bool:
    """Tell whether others than its user may read the token file that a start takes the token from."""
    path = settings.token_file or default_token_file()
    return settings.token is None and path.exists() and bool(path.stat().st_mode & 0o077)


def check_token(settings: Settings, *, on_purpose: bool) -> None:
    """Look whether a start would find its token for TCP, and make nothing; see `tcp_token`.

    Raises:
        ConfigError: It would not.
    """
    path = settings.token_file or default_token_file()
    if settings.token is None and (on_purpose or path.exists()):
        tcp_token(settings, on_purpose=on_purpose)


def tcp_token(settings: Settings, *, on_purpose: bool) -> str:
    """Give the bearer token for TCP: the setting, or what the token file holds; a first start makes that file.

    Args:
        settings: The settings.
        on_purpose: Whether only a token will do that somebody set: then no file is made.

    Raises:
        ConfigError: There is no token, or the file cannot be read or made.
    """
    if settings.token is not None:
        return settings.token.get_secret_value()
    path = settings.token_file or default_token_file()
    try:
        if on_purpose and not (settings.token_file and path.exists()):
            raise ConfigError(
                "TCP on an address that others can reach needs a token that was set on purpose: set token "
                "(VMMD_TOKEN), or token_file to a file that is there; or bind 127.0.0.1 (host)"
            )
        if not path.exists():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with open(path, "x", encoding="ascii", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
                file.write(secrets.token_urlsafe(32) + "\n")
        token = path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot use the token file {path}: {error}") from None
    if len(token) < _SHORTEST_TOKEN:
        raise ConfigError(f"the token in {path} has {len(token)} characters, and needs at least {_SHORTEST_TOKEN}")
    return token


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None


def _problem(details: Any) -> str:
    """Turn one of pydantic's findings into a line with the key and the value."""
    key = ".".join(str(step) for step in details["loc"])
    if details["type"] == "extra_forbidden":
        return f"{key}: there is no such setting"
    if details["type"] in {"model_type", "model_attributes_type"}:
        return f"{key}: it is a table of settings ([{key}] in a file, {key}.NAME=VALUE), not {details['input']!r}"
    if key == "token" and details["type"] == "too_short":
        return f"{key}: it has fewer than {_SHORTEST_TOKEN} characters"
    if key == "token":
        # The value is a secret also where it is no good.
        return f"{key}: {details['msg']}"
    return f"{key}: {details['msg']}, not {details['input']!r}"
