"""SQuAD's JSON, versions 1 and 2: a question a row, articles read one at a time.

Source: https://rajpurkar.github.io/SQuAD-explorer (2026-11), dev-v1.1.json and dev-v2.0.json.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainer.config.sections.examples import RecordsSource
from trainer.data.formats.json_array import items
from trainer.data.formats.rows import Reject, Row, checked_start, opened


def squad_rows(source: RecordsSource, path: Path, reject: Reject) -> Iterator[Row]:
    """`row` counts the questions of the file, in its order.

    Raises: DataError if it is not JSON with a list "data"; an article that is not as SQuAD's is
    rejected with its number.
    """
    with opened(path) as stream:
        if not checked_start(stream, path, reject=reject):
            return
        question = 0
        articles = items(stream, path, limit=source.max_row_bytes, key="data")
        for number, article in enumerate(articles, 1):
            for context, asked in _asked(article, f"{path} article {number}", reject):
                question += 1
                yield Row(_values(context, asked), str(path), question)


def _asked(article: Any, where: str, reject: Reject) -> Iterator[tuple[Any, dict[str, Any]]]:
    paragraphs = article.get("paragraphs") if isinstance(article, dict) else None
    if not isinstance(paragraphs, list):
        reject(f"{where} has no list 'paragraphs'")
        return
    for number, paragraph in enumerate(paragraphs, 1):
        asked = paragraph.get("qas") if isinstance(paragraph, dict) else None
        if not isinstance(asked, list) or not all(isinstance(a, dict) for a in asked):
            reject(f"{where}, paragraph {number} has no list 'qas' of questions")
            continue
        for one in asked:
            yield paragraph.get("context"), one


def _values(context: Any, asked: dict[str, Any]) -> dict[str, Any]:
    answers = [] if asked.get("is_impossible") else asked.get("answers")
    return {**asked, "context": context, "answers": answers}
