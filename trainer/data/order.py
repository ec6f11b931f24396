"""The order of samples: a permutation that is a pure function, nothing stored, O(1) an index.

A Feistel network on the smallest power of two that holds `n` indices, with cycle walking for the
indices beyond `n`. Resume at step 10^9 costs what step 10 costs: nothing is skipped or replayed.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]

ROUNDS = 6  # an even number; four make a pseudo-random permutation, tiny domains want more
MAX_LENGTH = 2**62
_GOLDEN = 0x9E3779B97F4A7C15
_MASK = 2**64 - 1


def permuted(index: Indices, n: int, *, key: int | Words) -> Indices:
    """Where the indices go under the permutation of range(n) that `key` names.

    `key` is one 64-bit number, or one for each index (several epochs in one call).
    Shapes: any; returns int64 of the shape of `index`, whose values must be in [0, n).
    Source: Black and Rogaway 2002, Ciphers with Arbitrary Finite Domains, sec. 5 (cycle walking).
    """
    if not 0 < n <= MAX_LENGTH:
        raise ValueError(f"a permutation of {n} indices: the length must be in 1..2^62")
    place = np.array(index, dtype=np.uint64)
    if n == 1:
        return np.zeros(place.shape, dtype=np.int64)
    flat = place.reshape(-1)
    keys = np.broadcast_to(np.asarray(key, dtype=np.uint64), place.shape).reshape(-1)
    bits = max(2, (n - 1).bit_length())
    flat = _feistel(flat, keys, bits=bits)
    outside = np.flatnonzero(flat >= np.uint64(n))
    while outside.size:  # at most half of the domain is outside, so this ends fast
        again = _feistel(flat[outside], keys[outside], bits=bits)
        flat[outside] = again
        outside = outside[again >= np.uint64(n)]
    return flat.reshape(place.shape).view(np.int64)


def order_keys(seed: int, source: str, *, epochs: Indices) -> Words:
    """One 64-bit key for each epoch of a source: its permutation differs from every other's."""
    name = hashlib.blake2b(f"{seed}/{source}".encode(), digest_size=8).digest()
    base = np.uint64(int.from_bytes(name, "little"))
    return scrambled(epochs.astype(np.uint64) * np.uint64(_GOLDEN) ^ base)


def scrambled(words: Words) -> Words:
    """A bijection of 64-bit words that spreads every bit; the input stays as it is.

    Source: Steele, Lea and Flood 2014, Fast Splittable Pseudorandom Number Generators (mix64).
    """
    h = words ^ (words >> np.uint64(30))
    h *= np.uint64(0xBF58476D1CE4E5B9)
    h ^= h >> np.uint64(27)
    h *= np.uint64(0x94D049BB133111EB)
    h ^= h >> np.uint64(31)
    return h


def is_held_out(document: int, fraction: float) -> bool:
    """Whether a document belongs to the evaluation split: by a hash of its index alone.

    The first document never does, so that a corpus of one document can be trained on.
    """
    if document == 0:
        return False
    h = (document * _GOLDEN + 0x1D8E4E27C47D124F) & _MASK
    h = ((h ^ (h >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    h = ((h ^ (h >> 27)) * 0x94D049BB133111EB) & _MASK
    return (h ^ (h >> 31)) < fraction * 2.0**64


def _feistel(words: Words, keys: Words, *, bits: int) -> Words:
    """A bijection of range(2^bits). The halves may differ by one bit, so the domain is < 2n."""
    low_bits = np.uint64(bits // 2)
    low_mask = np.uint64((1 << (bits // 2)) - 1)
    high_mask = np.uint64((1 << (bits - bits // 2)) - 1)
    low, high = words & low_mask, words >> low_bits
    for number in range(ROUNDS):
        round_keys = keys + np.uint64((number * _GOLDEN) & _MASK)
        if number % 2 == 0:
            high = high ^ (scrambled(low ^ round_keys) & high_mask)
        else:
            low = low ^ (scrambled(high ^ round_keys) & low_mask)
    return (high << low_bits) | low
