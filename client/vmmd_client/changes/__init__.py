"""Changes of a VM's memory map: transactions, holds, and the dirty pages that outlive their slots.

`transaction`, `hold` and `dirty_log` are what a user meets; `shared_vm` is what they share of a VM. Below them are
scripts without I/O: `commit` carries a plan (`order`) out, by single calls (`commit_calls`) or in a hold
(`commit_held`); `settle` asks what became of a lost one; `dirty_fetch` fetches the bits that `dirty` keeps by guest
address. `script` says what a script is, and `play` sends one.
"""
