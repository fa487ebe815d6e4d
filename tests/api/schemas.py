"""Validators for the schemas of the OpenRPC document, with its shared schemas at hand."""

from __future__ import annotations

from typing import Any

from jsonschema import Draft7Validator

from vmmd.api.openrpc import document

_SHARED = document()["components"]


def validator(schema: Any) -> Draft7Validator:
    """Give what checks values by a schema of the document."""
    return Draft7Validator({"components": _SHARED, "allOf": [schema]})
