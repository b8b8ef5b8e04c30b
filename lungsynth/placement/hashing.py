"""Mixing of 64-bit words: ids, seeds and shuffled orders of millions of samples, the same for one and for all.

The finaliser is that of SplitMix64 (Steele, Lea and Flood, 2014). It is no cryptographic hash: it tells samples apart
and notices accidents, it does not resist forgers. What identifies contents (assets, groups, weights) is SHA-256.
"""

from enum import IntEnum
from typing import Any

import numpy as np

__all__ = ["HashStream", "hash_arrays", "hash_words"]

_MASK = (1 << 64) - 1
_STEP = 0x9E3779B97F4A7C15
_SHIFTS_AND_FACTORS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1))


class HashStream(IntEnum):
    """The first word of a mixture, so that equal words for two ends give unrelated numbers."""

    ID = 1
    SEED = 2
    ORDER = 3


def hash_words(purpose: HashStream, *words: int) -> int:
    """A 64-bit number that depends on all words (each taken modulo 2**64) and on their order."""
    state = _finalise(_STEP ^ int(purpose))
    for word in words:
        state = _finalise(((state + _STEP) & _MASK) ^ (word & _MASK))
    return state


def hash_arrays(purpose: HashStream, *words: Any) -> np.ndarray:
    """`hash_words` of uint64 arrays and scalars that broadcast, uint64."""
    state = np.array(_finalise(_STEP ^ int(purpose)), dtype=np.uint64)
    step = np.uint64(_STEP)
    with np.errstate(over="ignore"):  # scalars wrap as arrays do, but warn
        for word in words:
            state = (state + step) ^ np.asarray(word, dtype=np.uint64)
            for shift, factor in _SHIFTS_AND_FACTORS:
                state = (state ^ (state >> np.uint64(shift))) * np.uint64(factor)
    return state


def _finalise(word: int) -> int:
    for shift, factor in _SHIFTS_AND_FACTORS:
        word = ((word ^ (word >> shift)) * factor) & _MASK
    return word
