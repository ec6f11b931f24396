"""Texts made of texts, for classification and targets: the same for the same seed, file and row.

Source: Wei and Zou 2019, "EDA", section 2 (replacement, deletion, swap); Joshi et al. 2020,
"SpanBERT", section 3.1 (spans, here of at most 5 words). No label that speaks of places is kept
right by these: tokens with tags, answers and relations are left alone.
"""

from __future__ import annotations

import gzip
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from trainer.config.sections.examples import AugmentSettings
from trainer.data.back_translated import BackTranslated, Translate
from trainer.errors import DataError
from trainer.records.record import Record

Lexicon = Mapping[str, tuple[str, ...]]
LONGEST_SPAN = 5
TASKS = ("classify", "seq2seq")  # whose labels speak of no place in the text
_PIECE = re.compile(r"\s+|\S+")
_EDGES = re.compile(r"^(\W*)(.*?)(\W*)$", re.DOTALL)


class Augmentation:
    """What the preparation does with each record that is trained on."""

    def __init__(
        self,
        settings: AugmentSettings,
        *,
        task: str,
        root: Path = Path(),
        translate: Translate | None = None,
    ) -> None:
        """`root`: where what came back from other languages is kept; `translate` asks for more.

        Raises: DataError for a lexicon that cannot be read, or a task whose labels would lie.
        """
        wants_back = settings.back_translation is not None
        if (settings.copies or wants_back) and task not in TASKS:
            raise DataError(
                f"data.augment changes texts, and labels of task={task} speak of places in them; "
                f"set data.augment.copies=0 data.augment.back_translation=null, or take one of "
                f"{', '.join(TASKS)}"
            )
        self._settings = settings
        self._lexicon: Lexicon = {}
        if settings.lexicon is not None and settings.copies:
            self._lexicon = read_lexicon(Path(settings.lexicon).expanduser())
        self._back: BackTranslated | None = None
        if wants_back:
            if translate is None:
                raise DataError(
                    "texts are said in other languages by `longhaul data prepare` alone"
                )
            self._back = BackTranslated(settings, root, translate)

    def ahead(self, records: Iterable[tuple[Record, bool]]) -> Iterator[tuple[Record, bool]]:
        """The same, and whether each is trained on; some are read before the first is given."""
        return iter(records) if self._back is None else self._back.ahead(records)

    def of(self, record: Record) -> Iterator[Record]:
        yield from augmented(record, self._settings, self._lexicon)
        back = None if self._back is None else self._back.of(record)
        if back is not None:
            yield back


def augmented(record: Record, settings: AugmentSettings, lexicon: Lexicon) -> Iterator[Record]:
    """The record itself, then its copies; one like any before it is left out."""
    yield record
    seen = {tuple(record.fields.get(name) for name in settings.fields)}
    for copy in range(settings.copies):
        changed: dict[str, str] = {}
        for name in settings.fields:
            text = record.fields.get(name)
            if isinstance(text, str):
                draws = _draws(settings.seed, record, name, copy)
                changed[name] = varied(text, settings, lexicon, draws)
        made = {**record.fields, **changed}
        texts = tuple(made.get(name) for name in settings.fields)
        if texts not in seen:
            seen.add(texts)
            yield Record(made, record.file, record.row)


def varied(
    text: str, settings: AugmentSettings, lexicon: Lexicon, draws: np.random.Generator
) -> str:
    """Words change; what stands between them stays where it can."""
    pieces = _PIECE.findall(text)
    words = [i for i, piece in enumerate(pieces) if not piece.isspace()]
    for place in words:
        if lexicon and draws.random() < settings.synonyms:
            pieces[place] = _synonym(pieces[place], lexicon, draws)
    for place in words:
        if draws.random() < settings.swap:
            other = words[int(draws.integers(len(words)))]
            pieces[place], pieces[other] = pieces[other], pieces[place]
    kept = [place for place in words if draws.random() >= settings.delete]
    kept = kept or words[:1]
    said = _masked([pieces[place] for place in kept], settings, draws)
    if len(said) == len(words):  # nothing is gone: line ends and spaces stay
        for place, word in zip(words, said, strict=True):
            pieces[place] = word
        return "".join(pieces)
    return " ".join(said)


def read_lexicon(path: Path) -> Lexicon:
    """Raises: DataError naming the line that is not a word, a tab and other words."""
    found: dict[str, tuple[str, ...]] = {}
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip() or line.startswith("#"):
                    continue
                word, tab, others = line.rstrip("\r\n").partition("\t")
                options = tuple(o.strip() for o in others.split(",") if o.strip())
                if not tab or not word.strip() or not options:
                    raise DataError(
                        f"{path} row {number} is no word, a tab, and words between commas: "
                        f"{line.strip()[:60]!r}"
                    )
                found[word.strip().lower()] = options
    except (OSError, EOFError, UnicodeDecodeError) as e:
        raise DataError(f"the lexicon {path} cannot be read: {e}") from e
    if not found:
        raise DataError(f"the lexicon {path} has no word")
    return found


def _synonym(piece: str, lexicon: Lexicon, draws: np.random.Generator) -> str:
    """Punctuation around the word stays, and a capital at its beginning."""
    edges = _EDGES.match(piece)
    assert edges is not None  # it matches anything
    before, word, after = edges.groups()
    options = lexicon.get(word.lower())
    if not options:
        return piece
    chosen = options[int(draws.integers(len(options)))]
    chosen = chosen[:1].upper() + chosen[1:] if word[:1].isupper() else chosen
    return f"{before}{chosen}{after}"


def _masked(words: list[str], settings: AugmentSettings, draws: np.random.Generator) -> list[str]:
    """Runs of words become one mask each, until the share is reached; one word always stays."""
    wanted = min(int(settings.mask * len(words)), len(words) - 1)
    hidden = np.zeros(len(words), dtype=bool)
    while hidden.sum() < wanted:
        length = min(int(draws.integers(1, LONGEST_SPAN + 1)), wanted - int(hidden.sum()))
        begin = int(draws.integers(len(words) - length + 1))
        hidden[begin : begin + length] = True
    said = []
    for place, word in enumerate(words):
        if not hidden[place]:
            said.append(word)
        elif place == 0 or not hidden[place - 1]:
            said.append(settings.mask_text)
    return said


def _draws(seed: int, record: Record, name: str, copy: int) -> np.random.Generator:
    """By the file's name and not its folder: data that moves stays the same."""
    facts = f"{seed}/{Path(record.file).name}/{record.row}/{name}/{copy}"
    key = hashlib.blake2b(facts.encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))
