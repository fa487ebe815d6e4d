"""JSON-RPC's own error codes, by their names. Numbers alone, so that a program can have them before any model."""

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
INTERNAL_ERROR = -32603
