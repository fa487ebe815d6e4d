"""What becomes of a transaction that ends with an error: a field of every error that one raises."""

import enum


class Outcome(enum.Enum):
    """What became of a transaction that ended with an error."""

    NOTHING_DONE = "the map is as it was"
    PART_DONE = "steps before the one that the error names stand"
    UNKNOWN = "it could not be learned: read the map anew"
