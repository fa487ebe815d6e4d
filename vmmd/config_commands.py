"""`vmmd config show` and `vmmd config check`: the settings, where each comes from, and whether a file will do."""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, SecretStr

from vmmd.api.places import default_token_file
from vmmd.config import Layer, check_token, load_layers
from vmmd.rpc.listen import is_loopback

_HIDDEN = "********"
_MISSING = object()
_LAYERS: tuple[Layer, ...] = ("command line", "environment", "file")

Form = Literal["toml", "json"]


def show(config: Path | None, command_line: dict[str, Any], form: Form) -> None:
    """Print the settings that `vmmd serve` would have, each with where it comes from; secrets are hidden.

    As TOML it is a file that can be used, once the secrets are put in; as JSON it is an object with a member a key.

    Raises:
        ConfigError: The settings cannot be used.
    """
    settings, layers = load_layers(config, command_line)
    entries = [(path, value, _source(path, layers)) for path, value in _leaves(settings)]
    if form == "json":
        table = {".".join(path): {"value": value, "source": source} for path, value, source in entries}
        sys.stdout.write(json.dumps(table, indent=2) + "\n")
        return
    section: tuple[str, ...] = ()
    for path, value, source in entries:
        if path[:-1] != section:
            section = path[:-1]
            sys.stdout.write(f"\n[{'.'.join(section)}]\n")
        # TOML has no null: what is not set stands as a comment.
        line = f"# {path[-1]} is not set{_instead(path)}" if value is None else f"{path[-1]} = {_toml(value)}"
        sys.stdout.write(f"{line}  # {source}\n")


def check(config: Path) -> None:
    """Check a file as it stands, without the environment, and print that it will do.

    Raises:
        ConfigError: A daemon would not start with it.
    """
    settings, _ = load_layers(config, None, environment=False)
    if settings.port is not None:
        check_token(settings, on_purpose=not is_loopback(settings.host))
    sys.stdout.write(f"{config}: every setting is known and within its bounds\n")


def _leaves(model: BaseModel, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Give each key as its path, with its value in JSON's types; what lies in tables comes last, as TOML wants it."""
    values = [(name, getattr(model, name)) for name in type(model).model_fields]
    for name, value in sorted(values, key=lambda entry: isinstance(entry[1], BaseModel)):
        match value:
            case BaseModel():
                yield from _leaves(value, (*path, name))
            case SecretStr():
                yield (*path, name), _HIDDEN
            case Path():
                yield (*path, name), str(value)
            case tuple():
                yield (*path, name), list(value)
            case _:
                yield (*path, name), value


def _instead(path: tuple[str, ...]) -> str:
    return f", {default_token_file()} is used where token is not set either" if path == ("token_file",) else ""


def _source(path: tuple[str, ...], layers: Mapping[Layer, dict[str, Any]]) -> str:
    for layer in _LAYERS:
        table: Any = layers.get(layer, {})
        for step in path:
            table = table.get(step, _MISSING) if isinstance(table, dict) else _MISSING
        if table is not _MISSING:
            return layer
    return "default"


def _toml(value: Any) -> str:
    """Write a value as TOML does; of strings, numbers and lists of strings JSON is a part of it."""
    text: str = json.dumps(value, ensure_ascii=False)
    return text
