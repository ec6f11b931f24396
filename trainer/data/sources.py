"""Where documents come from. A source yields texts in a fixed order and nothing else.

Adding one without a fork: a class of your own package with `documents()` and `digest()`, named by
`kind: custom` and admitted by run.trust.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

from trainer.config.sections.data import (
    CustomSource,
    DatasetsSource,
    FilesSource,
    StdlibSource,
)
from trainer.data.datasets_source import datasets_documents
from trainer.data.file_sources import file_documents
from trainer.data.parquet_source import parquet_documents
from trainer.data.users_error import users_error
from trainer.errors import DataError, Refused
from trainer.records.store_lookup import expanded, stdlib_files

AnySource = StdlibSource | FilesSource | DatasetsSource | CustomSource
NUM_EXAMPLES = 3


class Documents(Protocol):
    """What a custom class offers; it is made with its `settings` as keyword arguments."""

    def documents(self) -> Iterator[str]:
        """Every document, in the same order each time."""

    def digest(self) -> str:
        """Changes when the documents do; cheap, for it is asked at every start."""


@dataclass
class Rejected:
    """Counts the documents that the policy `skip` left out, and keeps the first few reasons.

    `source`: its name, for the override in a message.
    """

    source: str = "NAME"
    policy: str = "stop"
    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, reason: str) -> None:
        """Raises: DataError under the policy `stop`."""
        if self.policy != "skip":
            skip = f"data.sources.{self.source}.on_bad_line=skip"
            raise DataError(f"{reason}; mend it, or leave out what is bad: {skip}")
        self.count += 1
        if len(self.examples) < NUM_EXAMPLES:
            self.examples.append(reason)


def documents(source: AnySource, *, trust: Sequence[str], rejected: Rejected) -> Iterator[str]:
    """The texts of a source, never empty ones, in an order that depends on its settings alone.

    Raises: DataError naming file and line or byte, for everything that is not as promised.
    """
    match source:
        case StdlibSource():
            yield from _stdlib_documents()
        case FilesSource(format="parquet"):
            rejected.policy = source.on_bad_line
            yield from parquet_documents(source, files=expanded(source.paths), reject=rejected.add)
        case FilesSource():
            rejected.policy = source.on_bad_line
            yield from file_documents(source, files=expanded(source.paths), reject=rejected.add)
        case DatasetsSource():
            yield from datasets_documents(source)
        case CustomSource():
            made = custom(source, trust=trust, name=rejected.source)
            yield from _checked(source, made, name=rejected.source)


def custom(source: CustomSource, *, trust: Sequence[str], name: str = "NAME") -> Documents:
    """Construct the user's class. `name`: of the source, for messages.

    Raises: Refused if its package is not in `trust`; DataError if it cannot be imported or built.
    """
    module_name, _, class_name = source.target.partition(":")
    package = module_name.partition(".")[0]
    if package not in trust:
        raise Refused(
            f"data source {source.target} belongs to the package {package}, which run.trust does "
            f"not name; add run.trust=[{package}] if you trust its code"
        )
    try:
        made: Any = getattr(importlib.import_module(module_name), class_name)(**source.settings)
    except Exception as e:  # the user's code: anything can happen
        raise users_error(e, f"data source {name}: {source.target} cannot be made") from e
    for method in ("documents", "digest"):
        if not callable(getattr(made, method, None)):
            raise DataError(f"data source {source.target} has no method {method}()")
    return cast(Documents, made)


def custom_digest(source: CustomSource, *, trust: Sequence[str], name: str) -> str:
    """Raises: as `custom`; DataError if the user's digest() fails, or is no text."""
    made = custom(source, trust=trust, name=name)
    try:
        digest: Any = made.digest()
    except Exception as e:  # the user's code: anything can happen
        raise users_error(e, f"data source {name}: {source.target}.digest() failed") from e
    if not isinstance(digest, str):
        kind = type(digest).__name__
        raise DataError(f"data source {name}: {source.target}.digest() is {kind}, not str")
    return digest


def _checked(source: CustomSource, made: Documents, *, name: str) -> Iterator[str]:
    for number, text in enumerate(_items(source, made, name=name), 1):
        if not isinstance(text, str):
            kind = type(text).__name__
            raise DataError(
                f"data source {name}: {source.target}: document {number} is {kind}, not str"
            )
        if text:
            yield text


def _items(source: CustomSource, made: Documents, *, name: str) -> Iterator[Any]:
    number = 1
    try:  # not around the yield: what its reader raises is not the user's error
        every = iter(made.documents())
    except Exception as e:  # the user's code: anything can happen
        raise _at_item(e, source, name=name, number=number) from e
    while True:
        try:
            item = next(every)
        except StopIteration:
            return
        except Exception as e:
            raise _at_item(e, source, name=name, number=number) from e
        yield item
        number += 1


def _at_item(e: Exception, source: CustomSource, *, name: str, number: int) -> DataError:
    what = f"data source {name}: {source.target}.documents() failed at document {number}"
    return users_error(e, what)


def _stdlib_documents() -> Iterator[str]:
    for _, _, path in stdlib_files():
        # a few historical modules declare latin-1; replacement keeps the corpus plain UTF-8
        text = path.read_bytes().decode("utf-8", errors="replace")
        if text.strip():
            yield text
