"""What the order of turns is drawn from: numbers that are the same everywhere."""

from __future__ import annotations

from vmmd.kvm.turns import SplitMix64


def test_the_numbers_are_those_of_splitmix64() -> None:
    # Computed by the C program of its authors, http://prng.di.unimi.it/splitmix64.c, from 1234567.
    drawn = SplitMix64(1234567)
    assert [drawn.draw() for _ in range(5)] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def test_seeds_are_64_bits() -> None:
    assert SplitMix64(1 << 64).draw() == SplitMix64(0).draw() != SplitMix64((1 << 64) - 1).draw()
