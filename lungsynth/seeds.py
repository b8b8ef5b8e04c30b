"""Where random numbers come from: streams of seeds for the steps of a run, hashes for its millions of samples.

Every random number follows from the run's seed S. `seeds` gives the few that steps need: seed i of a `SeedStream` is
word i of `numpy.random.SeedSequence(S, spawn_key=(stream, *keys))`, shortened to 63 bits. Asking for more seeds never
changes the first ones.

`hash_words` and `hash_arrays` give ids, seeds and shuffled orders of samples, the same for one and for all at once.
They absorb one word after another with SplitMix64's finaliser (Steele, Lea and Flood, 2014). It is no cryptographic
hash: it tells samples apart and notices accidents, it does not resist forgers. What identifies contents (assets,
groups, weights) is SHA-256.

Numbers of streams and domains decide over all bytes: new ones are added at the end, none is changed.
"""

from enum import IntEnum
from typing import Any

import numpy as np

__all__ = ["GOLDEN_STEP", "HashDomain", "SeedStream", "hash_arrays", "hash_words", "mix_bits", "seeds"]

GOLDEN_STEP = 0x9E3779B97F4A7C15  # 2**64 over the golden ratio, odd: SplitMix64's step between states
_MASK = (1 << 64) - 1
_SHIFTS_AND_FACTORS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1))  # of SplitMix64's finaliser


class SeedStream(IntEnum):
    """What seeds are for; the first key of their `SeedSequence`."""

    GENERATED_NODULES = 0
    GENERATED_LUNGS = 1
    REAL_NODULES = 2
    REAL_LUNGS = 3
    GROUPS = 4
    SAMPLES = 5
    SLICES = 6
    TRIAL = 7
    GENERATED_CUBES = 8


def seeds(seed: int, stream: SeedStream, *keys: int, n: int) -> list[int]:
    """The first n seeds of a stream, each below 2**63."""
    sequence = np.random.SeedSequence(seed, spawn_key=(int(stream), *keys))
    return [int(word) >> 1 for word in sequence.generate_state(n, np.uint64)]


class HashDomain(IntEnum):
    """What a hash is for: its first word, so that equal words for two uses give unrelated numbers."""

    ID = 1
    SEED = 2
    ORDER = 3


def hash_words(domain: HashDomain, *words: int) -> int:
    """A 64-bit number that depends on all words (each taken modulo 2**64) and on their order."""
    state = mix_bits(GOLDEN_STEP ^ int(domain))
    for word in words:
        state = mix_bits((state + GOLDEN_STEP) ^ (word & _MASK))
    return state


def hash_arrays(domain: HashDomain, *words: Any) -> np.ndarray:
    """`hash_words` of uint64 arrays and scalars that broadcast, uint64."""
    state = np.array(mix_bits(GOLDEN_STEP ^ int(domain)), dtype=np.uint64)
    step = np.uint64(GOLDEN_STEP)
    with np.errstate(over="ignore"):  # scalars wrap as arrays do, but warn
        for word in words:
            state = (state + step) ^ np.asarray(word, dtype=np.uint64)
            for shift, factor in _SHIFTS_AND_FACTORS:
                state = (state ^ (state >> np.uint64(shift))) * np.uint64(factor)
    return state


def mix_bits(word: int) -> int:
    """Scatters the bits of a word, taken modulo 2**64 (SplitMix64's finaliser, a bijection)."""
    word &= _MASK
    for shift, factor in _SHIFTS_AND_FACTORS:
        word = ((word ^ (word >> shift)) * factor) & _MASK
    return word
