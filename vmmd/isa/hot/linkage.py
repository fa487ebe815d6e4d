"""Where the interpreter's object and translated regions meet: the table of regions, and what regions may call.

Only numbers and names: the interpreter's object is made at one time, regions at another and in another process, and
both are made from this.
"""

from __future__ import annotations

LINKAGE = ("go", "interpret", "reach_read", "reach_write", "store_slowly", "translate", "mark", "note_code")
"""The functions that a region calls, in the order of the table that `ContextRecord.linkage` points at."""

RECORD_WORDS = 4
"""A record of the table of regions: pc, host address of its machine code or 0, and address and count of its extents."""

EXTENT_WORDS = 3
"""An extent of a region's code: guest-physical address, bytes, and the host address of a copy of them."""

HASH_FACTOR = 0x9E37_79B9_7F4A_7C15
"""A pc's place in the table is (pc >> 2) * this, modulo 2^64, shifted down; it goes on with the next one."""

STORED, STORED_CODE, NOT_STORED = 0, 1, 2
"""What `store_slowly` returns."""
