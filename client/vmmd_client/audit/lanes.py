"""When a thread was inside KVM_RUN, in bounded memory: stays that lie close together are kept as one.

A recording can hold millions of KVM_RUNs; a picture of it has some hundred columns. A `Lane` starts exact, and each
time that it holds too many stays it doubles the distance below which two of them are one.
"""

MOST_STAYS = 2_000
"""How many stays a lane keeps."""


class Lane:
    """The stays of one thread, which have to be added in the order in which they began.

    Attributes:
        stays: (begin, end) in microseconds, in ascending order and apart by more than `blur_us`.
        runs: how many stays were added.
        blur_us: the distance in microseconds at or below which two stays are one; -1 as long as all are exact.
    """

    def __init__(self) -> None:
        self.stays: list[tuple[int, int]] = []
        self.runs = 0
        self.blur_us = -1

    def add(self, begin_us: int, end_us: int) -> None:
        """Add a stay."""
        self.runs += 1
        self._append(self.stays, begin_us, end_us)
        while len(self.stays) > MOST_STAYS:
            span_us = self.stays[-1][1] - self.stays[0][0]
            self.blur_us = max(2 * self.blur_us, span_us // (4 * MOST_STAYS), 1)
            merged: list[tuple[int, int]] = []
            for begin, end in self.stays:
                self._append(merged, begin, end)
            self.stays = merged

    def _append(self, stays: list[tuple[int, int]], begin_us: int, end_us: int) -> None:
        if stays and begin_us - stays[-1][1] <= self.blur_us:
            stays[-1] = (stays[-1][0], max(stays[-1][1], end_us))
        else:
            stays.append((begin_us, end_us))
