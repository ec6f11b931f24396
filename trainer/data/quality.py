"""Is a text worth learning from: rules on its words and lines.

Source: Rae et al. 2021, "Scaling Language Models: Methods, Analysis & Insights from Training
Gopher", section A1.1 (quality) and table A1 (repetition). Words are what stands between spaces. The
rules were made for English web pages: code, lists and other languages fail some of them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

_WORDS = (50, 100_000)
_WORD_LENGTH = (3, 10)
_MOST_SYMBOLS = 0.1  # "#" and ellipses to words
_MOST_BULLETS = 0.9  # of the lines
_MOST_ELLIPSES = 0.3  # of the lines
_LEAST_LETTERS = 0.8  # words with a letter in them
_STOP_WORDS = frozenset({"the", "be", "to", "of", "and", "that", "have", "with"})
_LEAST_STOP_WORDS = 2
_MOST_REPEATED_LINES = 0.3  # by number; 0.2 by characters
_MOST_REPEATED_IN_LINES = 0.2
_MOST_OF_TOP = {2: 0.20, 3: 0.18, 4: 0.16}  # characters in the most frequent run of n words
_BULLET = re.compile(r"\s*[-*•]")


def fault_of(text: str) -> str | None:
    """The first rule that a text breaks; None if it keeps all of them."""
    words = text.split()
    lines = [line for line in text.splitlines() if line.strip()]
    return _fault_of_words(words) or _fault_of_lines(lines) or _fault_of_repeats(words, lines)


def _fault_of_words(words: Sequence[str]) -> str | None:
    count = len(words)
    if not _WORDS[0] <= count <= _WORDS[1]:
        return f"not {_WORDS[0]} to {_WORDS[1]:,} words"
    mean = sum(map(len, words)) / count
    if not _WORD_LENGTH[0] <= mean <= _WORD_LENGTH[1]:
        return "words too short or too long"
    symbols = sum(w.count("#") + w.count("...") + w.count("…") for w in words)
    if symbols > _MOST_SYMBOLS * count:
        return "too many # or ellipses"
    if sum(any(c.isalpha() for c in w) for w in words) < _LEAST_LETTERS * count:
        return "too few words with a letter"
    if len(_STOP_WORDS & {w.lower() for w in words}) < _LEAST_STOP_WORDS:
        return "too few stop words"
    return None


def _fault_of_lines(lines: Sequence[str]) -> str | None:
    bullets = sum(_BULLET.match(line) is not None for line in lines)
    if bullets > _MOST_BULLETS * len(lines):
        return "almost all bullet points"
    ellipses = sum(line.rstrip().endswith(("...", "…")) for line in lines)
    if ellipses > _MOST_ELLIPSES * len(lines):
        return "too many lines that break off"
    return None


def _fault_of_repeats(words: Sequence[str], lines: Sequence[str]) -> str | None:
    counts = Counter(lines)
    repeated = sum(n - 1 for n in counts.values())
    characters = sum((n - 1) * len(line) for line, n in counts.items())
    if repeated > _MOST_REPEATED_LINES * len(lines) or characters > _MOST_REPEATED_IN_LINES * sum(
        map(len, lines)
    ):
        return "repeated lines"
    whole = sum(map(len, words))
    for size, most in _MOST_OF_TOP.items():
        runs = Counter(zip(*(words[i:] for i in range(size)), strict=False))
        if not runs:
            continue
        top, number = runs.most_common(1)[0]
        if number > 1 and number * sum(map(len, top)) > most * whole:
            return f"one run of {size} words over and over"
    return None
