"""Texts that are nearly the same.

Two texts are, if at least `THRESHOLD` of the runs of five characters that either has are in both (their Jaccard
similarity), which works for Han and Latin alike; capital letters and spaces make no difference. MinHash (Broder, 1997:
https://doi.org/10.1109/SEQUEN.1997.666900) finds the candidates, by bands of equal hashes: 99 % of pairs with a
similarity of 0.8, 32 % of those with 0.5. What is said to be similar was compared in full.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy import ndarray

RUN = 5  # characters
THRESHOLD = 0.8
HASHES, BANDS = 60, 12
LONGEST = 20_000  # characters of a text that are compared
SAME_BAND = 4  # texts that are kept with one band, the first ones: templates give very many the same
COMPARED = 3  # in full, of the candidates whose hashes are most alike
UNLIKELY = THRESHOLD - 0.2  # share of equal hashes: four standard deviations below
ROOM = 500_000_000  # bytes: what was kept until then is compared with all later texts
OVERHEAD = 2500  # bytes of a text that is kept, beside its characters
EXAMPLES = 3


@dataclass
class Hashed:
    text: str
    hashes: ndarray
    bands: list[int]


class Near:
    """Texts that were kept, each with its location."""

    def __init__(self) -> None:
        import numpy
        from rensa import RMinHash

        self._numpy, self._minhash = numpy, RMinHash.digest_matrix_from_flat_token_hashes
        self._odd = numpy.random.default_rng(0).integers(1 << 63, size=(BANDS, HASHES // BANDS), dtype="uint64") | 1
        self._hashes = numpy.zeros((1024, HASHES), "uint32")
        self._bands: dict[int, int] = {}  # a band, or one of the next numbers: a text that has it
        self._texts: list[str] = []
        self._locations: list[str] = []
        self._room = ROOM

    def hashed(self, text: str) -> Hashed:
        plain = " ".join(text.casefold().split())[:LONGEST]
        codes = self._numpy.frombuffer(plain.ljust(RUN).encode("utf-32-le", "surrogatepass"), "uint32").astype("uint64")
        mixed = codes[RUN - 1 :].copy()
        for i in range(1, RUN):  # a hash of each run: a polynomial of its characters, modulo 2^64, and its high bits
            mixed = mixed * self._numpy.uint64(0x9E3779B97F4A7C15) + codes[RUN - 1 - i : -i]
        mixed ^= mixed >> self._numpy.uint64(31)
        [digest] = self._minhash(mixed, [0, len(mixed)], HASHES, 0).to_rows()
        hashes = self._numpy.array(digest, "uint32")
        bands = (hashes.reshape(BANDS, -1) * self._odd).sum(axis=1) >> self._numpy.uint64(4)
        return Hashed(plain, hashes, bands.tolist())

    def find(self, one: Hashed) -> str | None:
        """The location of a text that is nearly the same, the most similar of those that were compared."""
        candidates: set[int] = set()
        for band in one.bands:
            for place in range(band, band + SAME_BAND):
                if (number := self._bands.get(place)) is None:
                    break
                candidates.add(number)
        if not candidates:
            return None
        numbers = sorted(candidates)
        alike = (self._hashes[numbers] == one.hashes).mean(axis=1).tolist()
        best = sorted(zip([-share for share in alike], numbers, strict=True))[:COMPARED]
        likely = [number for share, number in best if -share >= UNLIKELY]
        own = runs(one.text) if likely else set()
        found = [(similarity(own, runs(self._texts[number])), -number) for number in likely]
        most, first = max(found, default=(0.0, 0))
        return self._locations[-first] if most >= THRESHOLD else None

    def add(self, one: Hashed, location: str) -> bool:
        """Keep the text, unless there is no room left."""
        self._room -= sys.getsizeof(one.text) + OVERHEAD
        if self._room < 0:
            return False
        number = len(self._texts)
        if number == len(self._hashes):
            self._hashes = self._numpy.concatenate([self._hashes, self._numpy.zeros_like(self._hashes)])
        self._hashes[number] = one.hashes
        for band in one.bands:
            for place in range(band, band + SAME_BAND):
                if self._bands.setdefault(place, number) == number:
                    break
        self._texts.append(one.text)
        self._locations.append(location)
        return True


def runs(text: str) -> set[str]:
    """All runs of five characters; a shorter text is one."""
    return {text[i : i + RUN] for i in range(max(1, len(text) - RUN + 1))}


def similarity(one: set[str], other: set[str]) -> float:
    """Jaccard's: the share of what either has that both have."""
    both = len(one & other)
    return both / (len(one) + len(other) - both)


@dataclass
class NearRows:
    """Rows that are nearly the same as an earlier one: the first of each group, and the next."""

    near: Near = field(default_factory=Near)
    groups: dict[str, list[str]] = field(default_factory=dict)  # the first `EXAMPLES` like the first
    counts: dict[str, int] = field(default_factory=dict)
    beyond: int = 0  # rows that came when there was no room left

    def add(self, location: str, text: str) -> None:
        one = self.near.hashed(text)
        first = self.near.find(one)
        if first is None:
            self.beyond += not self.near.add(one, location)
            return
        self.counts[first] = self.counts.get(first, 0) + 1
        if self.counts[first] <= EXAMPLES:
            self.groups.setdefault(first, []).append(location)

    def to_dict(self) -> dict[str, Any]:
        largest = sorted(self.counts, key=lambda first: -self.counts[first])[:EXAMPLES]
        return {
            "similarity": THRESHOLD,
            "rows": sum(self.counts.values()),
            "groups": len(self.counts),
            "examples": [{"first": f, "rows": self.counts[f], "like": self.groups[f]} for f in largest],
            **({"not_compared_with_each_other": self.beyond} if self.beyond else {}),
        }
