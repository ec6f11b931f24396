"""What two models made of texts that are trained on: asked once, kept in a file beside the stores.

A preparation that was interrupted, or made again with other settings, asks for nothing twice; the
file is also the record of what was said. One line a text: {"text": ..., "back": ...}.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from trainer.config.sections.examples import AugmentSettings
from trainer.errors import DataError
from trainer.records.example_lookup import translator_facts
from trainer.records.record import Record

Translate = Callable[[Sequence[str]], list[str]]
FOLDER = "back-translations"  # below data.store_root
_AHEAD = 64  # records whose texts are asked for together


class BackTranslated:
    """`translate`: a text said in another language and back, each of several."""

    def __init__(self, settings: AugmentSettings, root: Path, translate: Translate) -> None:
        back = settings.back_translation
        assert back is not None
        facts = json.dumps([back.model_dump(mode="json"), translator_facts(back.model_dump())])
        name = hashlib.sha256(facts.encode()).hexdigest()[:16]
        self._path = root.expanduser() / FOLDER / f"{name}.jsonl"
        self._fields, self._translate = settings.fields, translate
        self._known = dict(_lines(self._path))

    def ahead(self, records: Iterable[tuple[Record, bool]]) -> Iterator[tuple[Record, bool]]:
        """The same records, of which those that are trained on (true) are asked about first."""
        rest = iter(records)
        while part := list(islice(rest, _AHEAD)):
            self._ask(record for record, is_trained in part if is_trained)
            yield from part

    def of(self, record: Record) -> Record | None:
        """The record as it came back; None if nothing of it changed, or nothing came back."""
        texts = self._texts(record)
        back = {name: self._known[text].strip() for name, text in texts.items()}
        if not all(back.values()) or back == texts or not texts:
            return None
        return Record({**record.fields, **back}, record.file, record.row)

    def _texts(self, record: Record) -> dict[str, str]:
        given = {name: record.fields.get(name) for name in self._fields}
        return {name: text for name, text in given.items() if isinstance(text, str) and text}

    def _ask(self, records: Iterable[Record]) -> None:
        asked = dict.fromkeys(t for record in records for t in self._texts(record).values())
        new = [text for text in asked if text not in self._known]
        if not new:
            return
        found = dict(zip(new, self._translate(new), strict=True))
        self._known |= found
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            for text, back in found.items():
                file.write(json.dumps({"text": text, "back": back}, ensure_ascii=False) + "\n")


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Raises: DataError for a line that is none, unless it is the last: its writer was killed."""
    if not path.is_file():
        return
    lines = path.read_text("utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            value = json.loads(line)
            yield value["text"], value["back"]
        except (ValueError, KeyError, TypeError):
            if number < len(lines):
                raise DataError(f"{path} row {number} is damaged; remove the file") from None
            path.write_text("".join(f"{whole}\n" for whole in lines[:-1]), encoding="utf-8")
