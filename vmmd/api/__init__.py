"""The wire contract: parameter and result models, the one table of methods, error data.

A leaf: it knows pydantic and nothing of the daemon, so that the client library can import it alone. `methods.METHODS`
is the only list of what can be asked; dispatcher, handlers and client read it. Models and rows lie in a file a room:
`system` (kvm., daemon.), `memory` (host and guest memory), `memslots` (regions, dirty log), `holds` (kick and resume),
`vcpus`, `machine` (the run loop and the console), `isa`. `method` is what a row is, `types` what models are made of,
`errors` what goes wrong, `codes` JSON-RPC's numbers for it.
"""
