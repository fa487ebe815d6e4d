"""The network half: JSON-RPC's rules, the translation between wire and core, and the HTTP server."""
