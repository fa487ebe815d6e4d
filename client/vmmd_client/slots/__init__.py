"""A slot map and its changes, as values: from what is wanted to the fewest calls, and why vCPUs have to be held.

`memslots` is what a slot is, `draft` takes changes as their owner thinks of them, `slot_ids` finds free ids for it, and
`plan` says what KVM has to be asked for. Nothing here does I/O, or knows of a call.
"""
