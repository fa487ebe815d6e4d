"""The OpenRPC document: OpenRPC and JSON Schema take it, it says all that the table knows, and the copy is current."""

from __future__ import annotations

import copy
import errno
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator

from tests.api.schemas import validator
from vmmd.api.errors import PROTOCOL_ERRORS
from vmmd.api.examples import EXAMPLES
from vmmd.api.methods import METHODS, Method
from vmmd.api.openrpc import document, text

ROOT = Path(__file__).parent.parent.parent
DOCUMENT = document()
OF = {method["name"]: method for method in DOCUMENT["methods"]}
META = Draft7Validator(json.loads((Path(__file__).parent / "openrpc_metaschema.json").read_text()))
UNITS = re.compile(
    r"\b(bytes?|milliseconds|address|pages?|id|slots?|events?|entries|instructions|bits|generation|position|order)\b",
    re.IGNORECASE,
)

each_row = pytest.mark.parametrize("row", METHODS.values(), ids=list(METHODS))


def schemas(value: Any) -> Iterator[Any]:
    """Give every schema of the document: each parameter's, each result's, and the shared ones."""
    for method in value["methods"]:
        yield from (parameter["schema"] for parameter in method["params"])
        yield method["result"]["schema"]
    yield from value["components"]["schemas"].values()


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from references(part)


def test_the_document_is_openrpc() -> None:
    META.validate(DOCUMENT)


def test_every_member_that_openrpc_wants_is_missed_where_it_is_gone() -> None:
    for path in (("info",), ("methods", 0, "params"), ("methods", 1, "params", 0, "schema"), ("info", "version")):
        broken = part = copy.deepcopy(DOCUMENT)
        for step in path[:-1]:
            part = part[step]  # type: ignore[index]
        del part[path[-1]]  # type: ignore[arg-type]
        assert not META.is_valid(broken), path


def test_every_schema_is_one_of_draft_7_and_every_reference_leads_somewhere() -> None:
    for schema in schemas(DOCUMENT):
        Draft7Validator.check_schema(schema)
    for reference in references(DOCUMENT):
        found: Any = DOCUMENT
        for step in reference.removeprefix("#/").split("/"):
            found = found[step]
        assert found


def test_no_schema_has_anything_beside_a_reference() -> None:
    def walk(schema: Any) -> None:
        if isinstance(schema, dict):
            assert "$ref" not in schema or len(schema) == 1
            schema = list(schema.values())
        if isinstance(schema, list):
            for part in schema:
                walk(part)

    walk(list(schemas(DOCUMENT)))


def test_the_document_has_the_methods_of_the_table_in_its_order() -> None:
    assert list(OF) == list(METHODS)
    assert EXAMPLES.keys() == METHODS.keys()


@each_row
def test_a_method_says_all_that_its_row_knows(row: Method) -> None:
    method = OF[row.name]
    assert (method["summary"], method["x-gated"], method["x-changes"]) == (row.summary, row.gated, row.changes)
    assert method.get("x-ioctl") == row.ioctl
    assert [parameter["name"] for parameter in method["params"]] == list(row.params.positions())
    for parameter in method["params"]:
        field = row.params.model_fields[parameter["name"]]
        assert (parameter["description"], parameter["required"]) == (field.description, field.is_required())
    own = [error for error in method["errors"] if "code" in error]
    assert {error["data"]["errno"]: error["message"] for error in own} == row.all_errors
    assert all(error["code"] == getattr(errno, error["data"]["errno"]) for error in own)


@each_row
def test_every_number_that_is_asked_for_has_its_unit(row: Method) -> None:
    for parameter in OF[row.name]["params"]:
        schema = parameter["schema"]
        kinds = {kind.get("type") for kind in [schema, *schema.get("anyOf", [])]}
        if "integer" in kinds:
            assert UNITS.search(parameter["description"]), parameter


def test_json_rpcs_own_codes_are_in_it() -> None:
    errors = DOCUMENT["components"]["errors"].values()
    assert {error["code"]: error["message"] for error in errors} == dict(PROTOCOL_ERRORS)


@each_row
def test_an_example_fits_the_schemas_that_stand_beside_it(row: Method) -> None:
    (example,) = OF[row.name]["examples"]
    by_name = {parameter["name"]: parameter for parameter in OF[row.name]["params"]}
    given = [value["name"] for value in example["params"]]
    assert {name for name, parameter in by_name.items() if parameter["required"]} <= set(given)
    for value in example["params"]:
        validator(by_name[value["name"]]["schema"]).validate(value["value"])
    validator(OF[row.name]["result"]["schema"]).validate(example["result"]["value"])
    assert all(step["method"] in METHODS for step in example["x-before"])


def test_base64_is_measured_in_characters_and_not_in_the_bytes_that_it_stands_for() -> None:
    data = next(parameter for parameter in OF["vcpu.run"]["params"] if parameter["name"] == "data")
    assert validator(data["schema"]).is_valid("AAAAAAAAAAA=")
    assert not validator(data["schema"]).is_valid("AAAAAAAAAAAAAAAA")


def test_no_address_of_a_host_is_in_it() -> None:
    assert "servers" not in DOCUMENT
    assert "://" not in json.dumps(DOCUMENT)


def test_the_copy_under_review_is_current() -> None:
    current = (ROOT / "docs" / "openrpc.json").read_text() == text()
    assert current, "renew it: python -m vmmd.api.openrpc >docs/openrpc.json"
