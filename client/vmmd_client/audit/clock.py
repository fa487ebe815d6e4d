"""Times as recorders print them, made into microseconds that only grow.

strace prints seconds since 1970 (`-ttt`), the time of day (`-tt`) or the time since the last line (`-r`); kernel
tracers print seconds since boot. `Clock` tells them apart by their form. A time without a fraction of a second is
refused: updates last less than a millisecond.
"""

_DAY_US = 24 * 3600 * 1_000_000
_DIGITS = 6
_EPOCH_SECONDS = 100_000_000
"""Seconds since 1970 are above it, and no recording's distance between two lines is."""


def microseconds(fraction: str) -> int:
    """Give the microseconds of a fraction's digits, of which there may be three (ms) to nine (ns)."""
    return int(fraction if len(fraction) == _DIGITS else fraction[:_DIGITS].ljust(_DIGITS, "0"))


class Clock:
    """Makes one recording's printed times absolute; every line with a time has to be shown to it, in order.

    Args:
        relative: whether small numbers of seconds are distances from the line before, as `strace -r` prints them.
    """

    def __init__(self, *, relative: bool = True) -> None:
        self._relative = relative
        self._now_us = 0
        self._days_us = 0

    def seconds(self, seconds: int, micros: int) -> int:
        """Take a time in seconds: since some epoch, or since the last line."""
        value = seconds * 1_000_000 + micros
        if self._relative and seconds < _EPOCH_SECONDS:
            self._now_us += value
            return self._now_us
        return value

    def of_day(self, hours: int, minutes: int, seconds: int, micros: int) -> int:
        """Take a time of day; one that is far before the last one is of the next day."""
        value = ((hours * 60 + minutes) * 60 + seconds) * 1_000_000 + micros + self._days_us
        if self._now_us - value > _DAY_US // 2:
            self._days_us += _DAY_US
            value += _DAY_US
        self._now_us = value
        return value
