"""Guest memory as data: host mappings, memslots, the view that lookups use, dirty bitmaps. No event loop, no ISA."""
