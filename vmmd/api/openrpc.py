"""The OpenRPC document: the table of methods as a machine reads it, for code generators, consoles and reviewers.

Everything in it comes from the table, its models and its examples; nothing is said here a second time. Schemas are JSON
Schema draft 7, as OpenRPC wants them. There is no `servers` member: where a daemon listens is its configuration's.

`python -m vmmd.api.openrpc >docs/openrpc.json` renews the copy that is kept under review.
"""

import errno
import json
import sys
from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter
from pydantic.fields import FieldInfo
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode

from vmmd import __version__
from vmmd.api.codes import INTERNAL_ERROR, INVALID_PARAMS
from vmmd.api.errors import PROTOCOL_ERRORS
from vmmd.api.examples import EXAMPLES, Example
from vmmd.api.methods import METHODS, Method

OPENRPC_VERSION = "1.3.2"
"""The version of the specification that the document follows."""

_ABOUT = (
    "JSON-RPC 2.0 by POST /rpc, one request or a batch, which is executed in its order. Parameters go by name or by "
    'position; unknown ones are refused. 64-bit quantities are taken as an integer or a "0x…" string and given as a '
    '"0x…" string; bytes are base64. A call that fails answers with the number of an errno, and its name in '
    "`error.data.errno`; nothing has changed then. A reply may gain members. x-changes tells whether a call changes "
    "anything, x-gated whether it stays out while somebody else holds the VM, x-ioctl which ioctl it is. The calls in "
    "an example's x-before come before it; its x-varies names the members of its result that are never the same."
)

_REFERENCE = "#/components/schemas/{model}"

_Schemas = Mapping[tuple[str, JsonSchemaMode], Mapping[str, Any]]


def document() -> dict[str, Any]:
    """Give the whole document, in JSON's types."""
    schemas, shared = _schemas()
    return {
        "openrpc": OPENRPC_VERSION,
        "info": {
            "title": "vmmd",
            "description": _ABOUT,
            "version": __version__,
            "license": {"name": "Apache-2.0"},
        },
        "methods": [_method(row, schemas) for row in METHODS.values()],
        "components": {
            "schemas": shared,
            "errors": {_error_key(code): {"code": code, "message": when} for code, when in PROTOCOL_ERRORS.items()},
        },
    }


def text() -> str:
    """Give the document as it is checked in: indented, a line end at the end."""
    return json.dumps(document(), indent=1, ensure_ascii=False) + "\n"


class _Draft7(GenerateJsonSchema):
    """Pydantic's schemas without titles that only repeat a member's name."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def _schemas() -> tuple[_Schemas, dict[str, Any]]:
    """Give the schema of each method's parameters and result, and the schemas that they refer to."""
    inputs: list[tuple[str, JsonSchemaMode, TypeAdapter[Any]]] = []
    for row in METHODS.values():
        inputs.append((row.name, "validation", TypeAdapter(row.params)))
        inputs.append((row.name, "serialization", row.result_adapter))
    found, top = TypeAdapter.json_schemas(inputs, ref_template=_REFERENCE, schema_generator=_Draft7)
    shared = top.get("$defs", {})
    # The models of parameters stand in their methods, a descriptor a field.
    params = {key: shared.pop(_model_name(schema)) for key, schema in found.items() if key[1] == "validation"}
    schemas = {key: _draft7(params.get(key, schema)) for key, schema in found.items()}
    return schemas, {name: _draft7(schema) for name, schema in shared.items()}


def _model_name(schema: Mapping[str, Any]) -> str:
    return str(schema["$ref"]).rpartition("/")[2]


def _draft7(schema: Any) -> Any:
    """Give a schema as draft 7 reads it: it overlooks what stands beside a `$ref`, and measures base64 as it is."""
    if isinstance(schema, list):
        return [_draft7(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    whole = {name: _draft7(part) for name, part in schema.items()}
    if "$ref" in whole and len(whole) > 1:
        whole["allOf"] = [{"$ref": whole.pop("$ref")}]
    if whole.get("contentEncoding") == "base64" and "maxLength" in whole:
        whole["maxLength"] = (whole["maxLength"] + 2) // 3 * 4
    return whole


def _method(row: Method, schemas: _Schemas) -> dict[str, Any]:
    params = schemas[row.name, "validation"].get("properties", {})
    fields = row.params.model_fields
    return {
        "name": row.name,
        "summary": row.summary,
        "paramStructure": "either",
        "params": [_descriptor(name, fields[name], params[name]) for name in row.params.positions()],
        "result": {"name": "result", "schema": schemas[row.name, "serialization"]},
        "errors": [
            *({"code": getattr(errno, name), "message": when, "data": {"errno": name}} for name, when in _errors(row)),
            *({"$ref": f"#/components/errors/{_error_key(code)}"} for code in (INVALID_PARAMS, INTERNAL_ERROR)),
        ],
        "examples": [_example(row, EXAMPLES[row.name])],
        "x-changes": row.changes,
        "x-gated": row.gated,
        **({} if row.ioctl is None else {"x-ioctl": row.ioctl}),
    }


def _errors(row: Method) -> list[tuple[str, str]]:
    """Give a method's errnos with their sentences, in the order of their numbers."""
    return sorted(row.all_errors.items(), key=lambda error: int(getattr(errno, error[0])))


def _descriptor(name: str, field: FieldInfo, schema: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": name,
        "description": field.description,
        "required": field.is_required(),
        "schema": {member: value for member, value in schema.items() if member != "description"},
    }


def _example(row: Method, example: Example) -> dict[str, Any]:
    given = [name for name in row.params.positions() if name in example.params]
    return {
        "name": example.name,
        "params": [{"name": name, "value": example.params[name]} for name in given],
        "result": {"name": "result", "value": example.result},
        "x-before": [{"method": method, "params": params} for method, params in example.before],
        "x-varies": list(example.varies),
    }


def _error_key(code: int) -> str:
    return f"error{-code}"


if __name__ == "__main__":
    sys.stdout.write(text())
