"""The times and sizes that bound what goes over the wire. Numbers alone: nothing is loaded for them."""

DEFAULT_TIMEOUT_S = 30.0
"""How long a call may take beyond what it asks the daemon itself to wait, in seconds."""

CONNECT_TIMEOUT_S = 5.0
"""How long making a connection may take, in seconds."""

MAX_CONNECTIONS = 64
"""How many calls of one client by HTTP may be under way at once; more wait for a connection."""

MAX_MESSAGE_BYTES = 1 << 30
"""The largest message that is taken from a WebSocket, in bytes; the daemon's own limit is far below it."""
