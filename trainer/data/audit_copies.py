"""Which examples are copies of which: exact ones by hash, near ones by MinHash, in fixed memory an
example (16 bytes, and 72 for near ones).

Source: Broder 1997, "On the resemblance and containment of documents"; banding: Leskovec, Rajaraman
and Ullman, "Mining of Massive Datasets", section 3.4.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from trainer.data.encodings.example import Array

SHINGLE = 5  # tokens
# Two bands of one pair agree: 1 of 140 at resemblance 0.5, 2 of 3 at 0.8, all but 1 of 40 at 0.9
BANDS, ROWS, AGREEING = 8, 6, 2
_MOST_ALIKE = 64  # candidates of one key that are looked at: a key of thousands says nothing
_BLOCK = 100_000  # examples whose pairs are held at a time
_Hashes = npt.NDArray[np.uint64]
_Numbers = npt.NDArray[np.int64]


class Copies:
    """Hashes of examples in their order; questions are answered when all are in."""

    def __init__(self) -> None:
        self._whole = array("Q")
        self._inputs = array("Q")

    def __len__(self) -> int:
        return len(self._whole)

    def add(self, inputs: Array, others: Iterable[Array]) -> None:
        """`others`: what the example says besides: labels, targets."""
        first = hashlib.blake2b(inputs.tobytes(), digest_size=8)
        self._inputs.append(int.from_bytes(first.digest(), "little"))
        whole = first.copy()
        for values in others:
            whole.update(values.tobytes() + b"|")
        self._whole.append(int.from_bytes(whole.digest(), "little"))

    def repeated(self) -> list[int]:
        """Numbers of the examples that are the same as an earlier one."""
        return _later(np.frombuffer(self._whole, dtype=np.uint64))

    def contradicting(self) -> list[int]:
        """Those with the inputs of an earlier one, which say something else."""
        again = _later(np.frombuffer(self._inputs, dtype=np.uint64))
        copies = set(self.repeated())
        return [number for number in again if number not in copies]

    def within(self, other: Copies) -> tuple[list[int], list[int]]:
        """Of these examples, those that `other` has: (wholly, only their inputs)."""
        whole = np.isin(_array(self._whole), _array(other._whole))
        inputs = np.isin(_array(self._inputs), _array(other._inputs)) & ~whole
        return np.flatnonzero(whole).tolist(), np.flatnonzero(inputs).tolist()


class NearCopies:
    """Keys of bands of MinHash signatures over runs of SHINGLE tokens."""

    def __init__(self) -> None:
        count = BANDS * ROWS
        numbers = np.random.default_rng(20_261_122)  # any fixed one: the same keys on every machine
        most = np.iinfo(np.uint64).max
        self._a = numbers.integers(0, most, size=(count, 1), dtype=np.uint64) | np.uint64(1)
        self._b = numbers.integers(0, most, size=(count, 1), dtype=np.uint64)
        self._keys = array("Q")

    def add(self, inputs: Array) -> None:
        self._keys.frombytes(self._bands(inputs.astype(np.uint64)).tobytes())

    def within(self, other: NearCopies) -> list[tuple[int, int]]:
        """(one of these examples, the first of `other`) that agree in AGREEING bands or more."""
        mine, theirs = self._table(), other._table()
        found = [_same(mine[:, band], theirs[:, band]) for band in range(BANDS)]
        coded, bands = np.unique(
            np.concatenate([m * len(theirs) + t for m, t in found]), return_counts=True
        )
        near = coded[bands >= AGREEING]
        numbers, first = np.unique(near // max(1, len(theirs)), return_index=True)
        return list(
            zip(numbers.tolist(), (near % max(1, len(theirs)))[first].tolist(), strict=True)
        )

    def again(self) -> list[tuple[int, int]]:
        """(one that goes, the one it is like that stays), if of those alike the first stays."""
        table, gone = self._table(), set[int]()
        orders = [np.argsort(table[:, band], kind="stable") for band in range(BANDS)]
        found = []
        for begin in range(0, len(table), _BLOCK):
            for number, earlier in self._alike(table, orders, begin):
                if number in gone or earlier in gone:
                    continue
                gone.add(number)
                found.append((number, earlier))
        return found

    def _alike(
        self, table: _Hashes, orders: list[_Numbers], begin: int
    ) -> Iterable[tuple[int, int]]:
        """(one of a block, an earlier one of all), by the first and then by the second."""
        coded: list[_Numbers] = []
        for band, order in enumerate(orders):
            mine, others = _places(table[begin : begin + _BLOCK, band], table[:, band], order)
            earlier = others < mine + begin
            coded.append((mine[earlier] + begin) * len(table) + others[earlier])
        pairs, bands = np.unique(np.concatenate(coded), return_counts=True)
        for pair in pairs[bands >= AGREEING].tolist():
            yield divmod(pair, len(table))

    def _table(self) -> _Hashes:
        return _array(self._keys).reshape(-1, BANDS)

    def _bands(self, ids: _Hashes) -> _Hashes:
        hashes = shingles(ids)
        # multiply-shift (Dietzfelbinger 1996): the high half of a * x + b mod 2^64
        hashed = (self._a * hashes + self._b) >> np.uint64(32)
        signature = hashed.min(axis=1).reshape(BANDS, ROWS)
        keys = np.zeros(BANDS, dtype=np.uint64)
        for row in range(ROWS):
            keys = (keys ^ signature[:, row]) * np.uint64(0x9E3779B97F4A7C15)
        return keys


def _same(mine: _Hashes, theirs: _Hashes) -> tuple[_Numbers, _Numbers]:
    """Places of equal keys: (in mine, in theirs)."""
    return _places(mine, theirs, np.argsort(theirs, kind="stable"))


def _places(mine: _Hashes, theirs: _Hashes, order: _Numbers) -> tuple[_Numbers, _Numbers]:
    """`_same`, where `order` sorts theirs: of each key the first _MOST_ALIKE."""
    keys = theirs[order]
    begins = np.searchsorted(keys, mine, side="left")
    counts = np.minimum(np.searchsorted(keys, mine, side="right") - begins, _MOST_ALIKE)
    ends = np.cumsum(counts)
    ramp = np.arange(int(ends[-1]) if len(ends) else 0) - np.repeat(ends - counts, counts)
    numbers = np.repeat(np.arange(len(mine), dtype=np.int64), counts)
    return numbers, order[np.repeat(begins, counts) + ramp].astype(np.int64)


def shingles(ids: _Hashes, *, size: int = SHINGLE) -> _Hashes:
    """Hashes of the runs of `size` ids, each once, sorted; of all of them where there are fewer."""
    length = max(1, len(ids) - size + 1)
    mixed = np.zeros(length, dtype=np.uint64)
    for place in range(min(size, len(ids))):
        mixed = (mixed ^ ids[place : place + length]) * np.uint64(0x100000001B3)
        mixed ^= mixed >> np.uint64(29)
    return np.unique(mixed)


def _later(hashes: _Hashes) -> list[int]:
    """Numbers of those that occurred before."""
    _, first = np.unique(hashes, return_index=True)
    seen = np.ones(len(hashes), dtype=bool)
    seen[first] = False
    return np.flatnonzero(seen).tolist()


def _array(values: array[int]) -> _Hashes:
    return np.frombuffer(values, dtype=np.uint64) if len(values) else np.zeros(0, dtype=np.uint64)
