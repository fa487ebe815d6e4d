"""docs/reference, made from the sources: `python -m tests.docs.reference` writes it anew, and a test compares it.

Methods come from the table of methods by its OpenRPC document, instructions from T64's table, settings from their
model, metrics from what a daemon gives, exit codes from vmmctl's table.
"""

from __future__ import annotations

import errno
import http.client
import inspect
import json
import re
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from pydantic import BaseModel

from vmmd.api.events import EVENT_ADAPTER
from vmmd.api.methods import METHODS
from vmmd.api.openrpc import document
from vmmd.config import Settings
from vmmd.isa.instructions import INSTRUCTIONS, Instruction
from vmmd_client import errors
from vmmd_client.cli import exits
from vmmd_client.sync import connect
from vmmd_client.sync.local_daemon import local_daemon

from .fences import ROOT

FOLDER = ROOT / "docs" / "reference"
_MADE = "<!-- Made from the sources by `python -m tests.docs.reference`; a test says when it is old. -->\n"

_SHARED = ("hold", "wait_ms", "if_generation", "request_id", "deadline_ms")
"""Parameters that many methods have, told once."""


def pages() -> dict[str, Callable[[], str]]:
    """Give what makes each page, by its file's name."""
    return {
        "methods.md": methods,
        "events.md": events,
        "instructions.md": instructions,
        "settings.md": settings,
        "metrics.md": metrics,
        "exit-codes.md": exit_codes,
        "exceptions.md": exceptions,
    }


def page(title: str, about: str, body: Iterable[str]) -> str:
    """Put a page together."""
    return "\n".join([_MADE, f"# {title}", "", about, "", *body]).rstrip("\n") + "\n"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """Give a table's lines, with an empty one behind it."""
    head = list(head)
    lines = [[*head], ["---"] * len(head), *([_cell(cell) for cell in row] for row in rows)]
    return [*(f"| {' | '.join(line)} |" for line in lines), ""]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


# Methods.


def methods() -> str:
    """Make the page of methods."""
    made = document()
    schemas = made["components"]["schemas"]
    shared = {param["name"]: param for method in made["methods"] for param in method["params"]}
    families = dict.fromkeys(error for row in METHODS.values() for error in _family(row))
    # Where two of a family's sentences come together they stand alone elsewhere.
    single = [error for error in families if not any(_holds(error, other) for other in families)]
    body = [
        "## What many methods take",
        "",
        *table(
            ["parameter", "type", "default", ""],
            [_param(shared[name], schemas) for name in _SHARED],
        ),
        "## What many methods answer with",
        "",
        "A call that fails answers with the errno's number as `error.code` and its name in `error.data.errno`; nothing "
        "has changed then.",
        "",
        *table(
            ["errno", "when"],
            sorted(single, key=lambda error: (_number(error[0]), error[1])),
        ),
        "JSON-RPC's own:",
        "",
        *table(["code", "when"], [(str(e["code"]), e["message"]) for e in made["components"]["errors"].values()]),
    ]
    for method in made["methods"]:
        body += _method(method, schemas)
    about = (
        "Every method of the wire: JSON-RPC 2.0 by POST to `/rpc`, or as text frames of a WebSocket at `/ws`. u64 is "
        'an integer or a "0x…" string, and comes back as a string; base64 is bytes. Unknown parameters are refused. '
        "The same for machines: [openrpc.json](../openrpc.json), which `rpc.discover` gives too, with an example of "
        "each method."
    )
    return page("Methods", about, body)


def _method(method: Mapping[str, Any], schemas: Mapping[str, Any]) -> Iterator[str]:
    row = METHODS[method["name"]]
    facts = [
        *([row.ioctl] if row.ioctl else []),
        *(["changes something"] if row.changes else []),
        *(["gated: it stays out while somebody else holds the VM"] if row.gated else []),
    ]
    yield from (f"## {method['name']}", "", method["summary"] + (f" ({'; '.join(facts)})" if facts else ""), "")
    own = [param for param in method["params"] if param["name"] not in _SHARED]
    if own:
        yield from table(["parameter", "type", "default", ""], [_param(param, schemas) for param in own])
    also = [f"`{param['name']}`" for param in method["params"] if param["name"] in _SHARED]
    if also:
        yield from (f"It takes {', '.join(also)} too.", "")
    yield from _result(method["result"]["schema"], schemas)
    if row.errors:
        yield from table(["errno", "when"], sorted(row.errors.items(), key=lambda error: _number(error[0])))
    others = dict.fromkeys(name for name, _ in _family(row))
    if others:
        yield from (f"And, as above: {', '.join(sorted(others, key=_number))}.", "")


def _family(row: Any) -> Iterator[tuple[str, str]]:
    """Give the errors of a method that are not its own."""
    for name, sentence in row.all_errors.items():
        rest = sentence.removeprefix(row.errors.get(name, "")).strip()
        if rest:
            yield name, rest


def _holds(error: tuple[str, str], other: tuple[str, str]) -> bool:
    return error != other and error[0] == other[0] and other[1] in error[1]


def _number(name: str) -> int:
    return int(getattr(errno, name))


def _param(param: Mapping[str, Any], schemas: Mapping[str, Any]) -> tuple[str, str, str, str]:
    default = "required" if param["required"] else _default(param["schema"].get("default"))
    return f"`{param['name']}`", type_of(param["schema"], schemas), default, param["description"] or ""


def _default(value: Any) -> str:
    return "" if value is None else f"`{json.dumps(value)}`"


def _result(schema: Mapping[str, Any], schemas: Mapping[str, Any]) -> Iterator[str]:
    whole = _resolved(schema, schemas)
    items = _resolved(whole["items"], schemas) if whole.get("type") == "array" else None
    members = (items or whole).get("properties")
    if members is None:
        yield from (f"Result: {type_of(schema, schemas)}. {whole.get('description', '')}".rstrip(), "")
        return
    yield from ("Result: an array; each has" if items else "Result:", "")
    yield from table(
        ["member", "type", ""],
        [(f"`{name}`", type_of(member, schemas), member.get("description", "")) for name, member in members.items()],
    )


def _resolved(schema: Mapping[str, Any], schemas: Mapping[str, Any]) -> Mapping[str, Any]:
    """Follow a reference; what stands beside it is kept."""
    if "allOf" in schema:
        return {**schema, **_resolved(schema["allOf"][0], schemas)}
    if "$ref" not in schema:
        return schema
    return _resolved(schemas[str(schema["$ref"]).rpartition("/")[2]], schemas)


def type_of(schema: Mapping[str, Any], schemas: Mapping[str, Any]) -> str:
    """Give the type of a schema in a few words."""
    schema = _resolved(schema, schemas)
    if "const" in schema or "enum" in schema:
        return " or ".join(f"`{json.dumps(value)}`" for value in schema.get("enum", [schema.get("const")]))
    branches = schema.get("anyOf") or schema.get("oneOf")
    return _any_of(branches, schemas) if branches else _plain(schema, schemas)


def _any_of(branches: Iterable[Mapping[str, Any]], schemas: Mapping[str, Any]) -> str:
    words = dict.fromkeys(type_of(branch, schemas) for branch in branches)
    if "hex string" in words:
        words = {"u64" if word.startswith("integer") else word: None for word in words if word != "hex string"}
    return " or ".join(words)


def _plain(schema: Mapping[str, Any], schemas: Mapping[str, Any]) -> str:
    kind = str(schema.get("type", "any"))
    match kind:
        case "string" if str(schema.get("pattern", "")).startswith("^0"):
            kind = "hex string"
        case "string" if schema.get("contentEncoding") == "base64":
            kind = "base64"
        case "integer":
            kind = f"integer{_bounds(schema)}"
        case "array" if "items" in schema:
            kind = f"array of {type_of(schema['items'], schemas)}"
        case "object" if "properties" in schema:
            kind = "{" + ", ".join(f"`{name}`" for name in schema["properties"]) + "}"
    return kind


def _bounds(schema: Mapping[str, Any]) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    if high is None or high >= (1 << 32) - 1:
        return "" if low in {None, 0} else f", {low} or more"
    return f", {low} to {high}"


# Events.


def events() -> str:
    """Make the page of events."""
    made = EVENT_ADAPTER.json_schema(mode="serialization")
    schemas = made["$defs"]
    body = []
    for reference in made["oneOf"]:
        event = _resolved(reference, schemas)
        members = {name: member for name, member in event["properties"].items() if name not in _EVERY_EVENT}
        body += [f"## {event['properties']['type']['const']}", "", event["description"], ""]
        if members:
            rows = [
                (f"`{name}`", type_of(member, schemas), member.get("description", ""))
                for name, member in members.items()
            ]
            body += table(["member", "type", ""], rows)
    about = (
        "What `events.subscribe` sends over a WebSocket, as notifications of the method `event`. Each has `seq`, one "
        "more than that of the event before it; `time`; `vm`; and `type`. "
        "[How to watch them](../how-to/watch-events.md)."
    )
    return page("Events", about, body)


_EVERY_EVENT = frozenset({"seq", "time", "vm", "type"})


# Instructions.


def instructions() -> str:
    """Make the page of T64's instructions."""
    groups: dict[str, list[Instruction]] = {}
    for row in INSTRUCTIONS:
        groups.setdefault(row.name.split(".")[0] if "." in row.name else row.name, []).append(row)
    lines = []
    for rows in groups.values():
        first = rows[0]
        names = ", ".join(f"`{row.name}`" for row in rows)
        lines.append((names, first.format.name, f"`{first.match:08x}`", f"`{first.mask:08x}`", _meaning(first)))
    about = (
        "T64 is RISC-V's RV64I, M, A and Zicsr with machine mode, and port I/O in the custom-0 space. A word is an "
        "instruction where `word & mask` is its match; match and mask are of the first name in the row. The meaning is "
        "the table's own line, over 64-bit operands in the order of the format: every engine executes that line."
    )
    return page("Instructions", about, table(["name", "format", "match", "mask", "meaning"], lines))


def _meaning(row: Instruction) -> str:
    """Give the row's line of meaning as it stands in the source; of one that a function makes, that function's."""
    source = inspect.getsource(row.meaning)
    found = re.search(r"lambda ops(?:, \w+)*: (.*)", source, re.DOTALL)
    text = found.group(1) if found else source
    return f"`{_balanced(' '.join(text.split()))}`".replace("ops.", "")


def _balanced(text: str) -> str:
    """Cut text where a bracket closes, or a comma stands, that is not of it."""
    depth = 0
    for index, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if depth < 0 or (depth == 0 and character == ","):
            return text[:index]
    return text


# Settings.


def settings() -> str:
    """Make the page of settings."""
    about = (
        "The command line wins over the environment (`VMMD_PORT`, `VMMD_LIMITS__VMS`), that over the TOML file, and "
        "that over the default; `vmmd serve --set limits.vms=3` sets any key. `vmmd config show` prints them all. "
        "[config/vmmd.toml](../../config/vmmd.toml) is the file with every key."
    )
    return page("Settings", about, table(["setting", "default", "bounds", ""], _settings(Settings, "")))


def _settings(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, str, str, str]]:
    for name, field in model.model_fields.items():
        if isinstance(field.default, BaseModel):
            yield from _settings(type(field.default), f"{prefix}{name}.")
            continue
        default = "by the machine" if field.default_factory else _setting(field.default)
        bounds = [
            f"{sign} {value:,}"
            for rule in field.metadata
            for attribute, sign in (("ge", "≥"), ("le", "≤"))
            if (value := getattr(rule, attribute, None)) is not None
        ]
        yield f"`{prefix}{name}`", default, ", ".join(bounds), field.description or ""


def _setting(value: Any) -> str:
    if value is None:
        return "none"
    return f"{value:,}" if type(value) is int else f"`{json.dumps(value)}`"


# Metrics.


def metrics() -> str:
    """Make the page of metrics, from what a daemon gives after one of everything."""
    rows = []
    for family in text_string_to_metric_families(_scraped()):
        # When a counter was made, which this format tells apart, is no metric to anybody.
        if family.name.startswith("vmmd") and not family.name.endswith("_created"):
            labels = dict.fromkeys(label for sample in family.samples for label in sample.labels if label != "le")
            name = family.name + ("_total" if family.type == "counter" else "")
            rows.append((f"`{name}`", family.type, ", ".join(f"`{label}`" for label in labels), family.documentation))
    about = (
        "GET `/metrics` gives them in Prometheus's text format, guarded as calls are. Durations are in seconds. The "
        "process's own (`process_resident_memory_bytes`, …) are there too."
    )
    return page("Metrics", about, table(["metric", "type", "labels", ""], rows))


def _scraped() -> str:
    with local_daemon() as url, connect(url) as vmmd:
        vm = vmmd.kvm.create_vm()
        ram = vm.map_host_memory(0x1000)
        vm.set_user_memory_region(0, guest_phys_addr=0, memory_size=0x1000, userspace_addr=ram)
        vm.write_guest_memory(0, vmmd.isa.assemble("wfi").code)
        vm.create_vcpu(0).run()
        with vm.hold():
            pass
        path = url.removeprefix("unix://")
        _get(path, "/rpc", "POST")
        return _get(path, "/metrics", "GET")


def _get(path: str, page_path: str, method: str) -> str:
    connection = http.client.HTTPConnection("vmmd")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(path)
    try:
        connection.request(method, page_path, body="{}" if method == "POST" else None)
        return connection.getresponse().read().decode()
    finally:
        connection.close()


# vmmctl and the library.


def exit_codes() -> str:
    """Make the page of vmmctl's exit codes."""
    rows = re.findall(r"^    (\d+) +(.*)$", exits.__doc__ or "", re.MULTILINE)
    about = (
        "What `vmmctl` ends with. `vmmctl run` gives the status with which the guest exits; its `--json` tells it from "
        "vmmctl's own. `vmmctl audit` has 0, 1 and 2 of its own: [gate it](../audit.md#gate-it)."
    )
    return page("Exit codes", about, table(["code", ""], rows))


def exceptions() -> str:
    """Make the page of the library's exceptions: the tree as the module draws it."""
    drawn = (errors.__doc__ or "").partition("::\n\n")[2]
    tree, _, rest = drawn.partition("\n\n")
    lines = [line.removeprefix("    ") for line in tree.splitlines()]
    about = "Everything that `vmmd_client` raises, with the fields that each has behind its colon."
    return page("Exceptions", about, ["```text tested=tests/docs/test_reference.py", *lines, "```", "", rest.strip()])


def main() -> None:
    """Write every page."""
    FOLDER.mkdir(exist_ok=True)
    for name, make in pages().items():
        (FOLDER / name).write_text(make())


if __name__ == "__main__":
    main()
