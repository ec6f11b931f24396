"""Files of examples -> one example store a source, under data.store_root.

Up to date: returns in milliseconds. Interrupted: goes on behind the last finished shard. Two at the
same time: the second waits for the lock and finds the work done.
"""

from __future__ import annotations

import shutil
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from trainer.config.schema import Config
from trainer.config.sections.example_data import ExampleSource, ExamplesSection
from trainer.config.sections.examples import RecordsSource
from trainer.data.augment import Augmentation
from trainer.data.back_translated import Translate
from trainer.data.best_fit import packed_rows, windows
from trainer.data.encodings.base import Encoding
from trainer.data.encodings.example import Example
from trainer.data.encodings.labels import MOST_LABELS, in_order
from trainer.data.encodings.table import encoding_of
from trainer.data.exact_fit import exact_rows
from trainer.data.example_store import ExampleSplit
from trainer.data.example_store_writer import ExampleStoreWriter
from trainer.data.formats.table import records
from trainer.data.order import is_held_out
from trainer.data.preparing import Log, locked, nothing_written
from trainer.data.sources import Rejected
from trainer.data.store_files import space_named
from trainer.data.task_tokenizer import TaskTokenizer
from trainer.data.tokenizer import tokenizer_digest
from trainer.errors import DataError
from trainer.plan import StorePlan
from trainer.planning import decoder_start_of
from trainer.records.example_lookup import (
    all_tokenizer_files,
    example_keys,
    find_example_stores,
    found_example_store,
)
from trainer.records.example_store import ExampleManifest, PackedRows
from trainer.records.record import Record
from trainer.records.token_store import TOKENIZER, Split

_CHECKED = 32  # records of each source, encoded before anything is written


@dataclass(frozen=True)
class _Work:
    """What the preparation of one source needs to know."""

    name: str
    source: ExampleSource
    held_out: RecordsSource | None
    data: ExamplesSection
    task: str
    key: str
    folder: Path
    encoding: Encoding
    tokenizer: TaskTokenizer
    labels: tuple[str, ...]
    augmentation: Augmentation

    def policy(self, split: Split) -> str:
        """What is done about a record that is not as promised."""
        alone = self.held_out if split == "held_out" else None
        return (alone or self.source).on_bad_line


def prepare_examples(
    config: Config, data: ExamplesSection, *, log: Log, translate: Translate | None = None
) -> list[StorePlan]:
    """Make every store that is missing or stale; the stores in the order of data.sources.

    Raises: Refused for settings and files that will not do, as far as that shows before a store is
    begun; DataError, with file and row, for what shows later, and for a disk that will not do.
    """
    plain, task = data.model_dump(mode="json"), config.task.model_dump(mode="json")
    start = decoder_start_of(config)
    with nothing_written():
        found = find_example_stores(plain, task, decoder_start=start)
    if found is None:
        _make(config, data, log=log, translate=translate)
        found = find_example_stores(plain, task, decoder_start=start)
    if found is None:
        raise DataError("the examples changed while they were prepared; run the command again")
    return [StorePlan(**asdict(store)) for store in found]


def _make(config: Config, data: ExamplesSection, *, log: Log, translate: Translate | None) -> None:
    keys = example_keys(
        data.model_dump(mode="json"),
        config.task.model_dump(mode="json"),
        decoder_start=decoder_start_of(config),
    )
    with nothing_written():
        tokenizer = TaskTokenizer.open(Path(data.tokenizer.path).expanduser())
        labels = _labels(config, data, tokenizer, log=log)
        encoding = encoding_of(config, tokenizer, labels=labels)
        augmentation = Augmentation(
            data.augment,
            task=config.task.kind,
            root=Path(data.store_root),
            translate=translate,
        )
        for name, source in data.sources.items():
            _check_beginning(name, source, encoding)
    with space_named(keys.root):
        keys.root.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, source in data.sources.items():
        folder = keys.store_folder(name)
        with locked(folder, log=log):
            if found_example_store(folder, source=name, weight=source.weight) is not None:
                continue
            if folder.exists():
                log(f"{folder} is not whole; preparing it again")
            work = _Work(
                name=name,
                source=source,
                held_out=data.held_out.get(name),
                data=data,
                task=config.task.kind,
                key=keys.stores[name],
                folder=folder,
                encoding=encoding,
                tokenizer=tokenizer,
                labels=labels,
                augmentation=augmentation,
            )
            _make_store(work, log=log)


def _labels(
    config: Config, data: ExamplesSection, tokenizer: TaskTokenizer, *, log: Log
) -> tuple[str, ...]:
    """Those of the settings, else all of the data that is trained on: one pass over it."""
    if data.labels is not None:
        return data.labels
    encoding = encoding_of(config, tokenizer, labels=())
    found: set[str] = set()
    for name, source in data.sources.items():
        rejected = Rejected(source=name)
        for record in records(source, rejected=rejected, wanted=encoding.wanted):
            try:
                found.update(encoding.labels_of(record))
            except DataError as e:
                if source.on_bad_line != "skip":
                    raise _may_be_skipped(name, e) from e
            if len(found) > MOST_LABELS:
                raise DataError(
                    f"{record.place}: more than {MOST_LABELS:,} different labels so far; is that "
                    f"the column of labels? data.sources.{name}.columns says which one is"
                )
    labels = in_order(found)
    if labels:
        shown = ", ".join(labels[:8]) + (", ..." if len(labels) > 8 else "")
        log(f"{len(labels)} labels in the data: {shown}")
    return labels


def _check_beginning(name: str, source: ExampleSource, encoding: Encoding) -> None:
    """Raises: DataError if the source cannot be read, has no example, or begins with a bad one."""
    rejected = Rejected(source=name)
    beginning = list(islice(records(source, rejected=rejected, wanted=encoding.wanted), _CHECKED))
    if not beginning:
        raise DataError(f"data.sources.{name} holds no example; correct its paths or columns")
    for record in beginning if source.on_bad_line != "skip" else ():
        try:
            encoding.encode(record)
        except DataError as e:
            raise _may_be_skipped(name, e) from e


def _may_be_skipped(name: str, error: DataError) -> DataError:
    return DataError(f"{error}; rows like it are left out by data.sources.{name}.on_bad_line=skip")


def _make_store(work: _Work, *, log: Log) -> None:
    writer = ExampleStoreWriter(
        work.folder,
        key=work.key,
        columns=work.encoding.columns,
        shard_tokens=work.data.shard_tokens,
    )
    writer.resume()
    if writer.next_record:
        log(f"{work.name}: going on behind record {writer.next_record:,}")
    counts = _Counts(work.labels, writer.counts)
    rejected = Rejected(source=work.name)  # a restart reads from the start, and counts anew
    try:
        every = _split_records(work, rejected)
        for number, (split, record) in enumerate(islice(every, writer.next_record, None)):
            if _add(work, writer, split, record, counts=counts):
                counts.skipped = rejected.count
                done = writer.next_record + number + 1
                writer.record_progress(next_record=done, counts=counts.as_dict())
        counts.skipped = rejected.count
        _publish(work, writer, counts=counts, log=log)
    finally:
        writer.close()


def _split_records(work: _Work, rejected: Rejected) -> Iterator[tuple[Split, Record]]:
    """Every record, and whether it is trained on; those for evaluation alone come last."""
    fraction = 0.0 if work.held_out is not None else work.data.held_out_fraction
    wanted = work.encoding.wanted
    every = enumerate(records(work.source, rejected=rejected, wanted=wanted))
    told = ((record, not is_held_out(number, fraction)) for number, record in every)
    for record, is_trained in work.augmentation.ahead(told):
        if not is_trained:
            yield "held_out", record
        else:
            yield from (("train", made) for made in work.augmentation.of(record))
    if work.held_out is not None:
        for record in records(work.held_out, rejected=rejected, wanted=wanted):
            yield "held_out", record


class _Counts:
    """What is counted while records are read; comes back after a restart."""

    def __init__(self, labels: Sequence[str], saved: dict[str, Any]) -> None:
        self._labels = labels
        self.skipped: int = saved.get("skipped", 0)
        self.left_out: int = saved.get("left_out", 0)  # of records that could not be encoded
        self.cut: int = saved.get("cut", 0)
        self.files: dict[str, int] = {f: i for i, f in enumerate(saved.get("files", []))}
        self.labels: Counter[str] = Counter(saved.get("labels", {}))

    def as_dict(self) -> dict[str, Any]:
        return {
            "skipped": self.skipped,
            "left_out": self.left_out,
            "cut": self.cut,
            "files": list(self.files),
            "labels": dict(self.labels),
        }

    def of_labels(self) -> tuple[int, ...]:
        return tuple(self.labels[name] for name in self._labels)


def _add(
    work: _Work, writer: ExampleStoreWriter, split: Split, record: Record, *, counts: _Counts
) -> bool:
    try:
        examples = _encoded(work, record)
    except DataError as e:
        if work.policy(split) != "skip":
            raise _may_be_skipped(work.name, e) from e
        counts.left_out += 1
        return False
    if split == "train" and work.labels:
        counts.labels.update(work.encoding.labels_of(record))
    finished = False
    for example in examples:
        counts.cut += example.was_cut
        number = counts.files.setdefault(record.file, len(counts.files))
        finished |= writer.add(split, example, file_number=number)
    return finished


def _encoded(work: _Work, record: Record) -> Sequence[Example]:
    """Raises: DataError for a record of which no whole example can be made."""
    examples = work.encoding.encode(record)
    for example in examples:
        if not 0 < example.length <= work.data.sequence_length:
            raise DataError(
                f"{record.place}: it became {example.length:,} tokens, and a row has 1 to "
                f"{work.data.sequence_length:,}; raise data.sequence_length"
            )
    return examples


def _publish(work: _Work, writer: ExampleStoreWriter, *, counts: _Counts, log: Log) -> None:
    shards = writer.finish()
    with space_named(writer.incoming):
        for file in all_tokenizer_files(work.data.tokenizer.path):
            shutil.copy(file, writer.incoming / file.name)
    if work.tokenizer.has_new_tokens or not (writer.incoming / TOKENIZER).exists():
        work.tokenizer.write(writer.incoming)
    manifest = ExampleManifest(
        source=work.name,
        task=work.task,
        tokenizer_digest=tokenizer_digest(writer.incoming),
        vocab_size=work.tokenizer.vocab_size,
        padding_id=work.tokenizer.padding_id,
        preparation_key=work.key,
        labels=work.labels,
        terms=work.encoding.terms,
        columns=writer.columns,
        row_tokens=work.data.sequence_length,
        skipped_records=counts.skipped + counts.left_out,
        cut_examples=counts.cut,
        files=tuple(counts.files),
        label_counts=counts.of_labels(),
        shards=shards,
        rows=(),
    )
    if work.data.packing:
        both: tuple[Split, Split] = ("train", "held_out")
        rows = tuple(_packed(writer, manifest, split, work) for split in both)
        manifest = ExampleManifest(**{**vars(manifest), "rows": rows})
    writer.publish(manifest)
    _say(work, manifest, log=log)


def _packed(
    writer: ExampleStoreWriter, manifest: ExampleManifest, split: Split, work: _Work
) -> PackedRows:
    """Read back from what was written, so that a restart packs what one go would have packed."""
    lengths_E = ExampleSplit(writer.incoming, manifest, split=split).row_lengths()
    ways = [
        _index_of(way(windows(lengths_E), work.data.sequence_length))
        for way in (packed_rows, exact_rows)
    ]
    numbers, ends = min(ways, key=lambda index: len(index[1]))  # the one of fewer rows
    files = (
        writer.write_numbers(f"{split}.rows", np.asarray(numbers)),
        writer.write_numbers(f"{split}.row_ends", np.asarray(ends)),
    )
    return PackedRows(split, len(ends), files)


def _index_of(rows: Iterable[list[int]]) -> tuple[array[int], array[int]]:
    """(examples in the order of the rows, where each row ends): 16 bytes an example."""
    numbers, ends = array("q"), array("q")
    for row in rows:
        numbers.extend(row)
        ends.append(len(numbers))
    return numbers, ends


def _say(work: _Work, manifest: ExampleManifest, *, log: Log) -> None:
    train, rows = manifest.num_examples("train"), manifest.num_rows("train")
    log(
        f"{work.name}: {train:,} examples to train on in {rows:,} rows, "
        f"{manifest.num_examples('held_out'):,} held out, in {work.folder}"
    )
    if work.data.packing and rows:
        axes = {column.axis for column in manifest.columns} & {"T", "S"}
        filled = manifest.num_tokens("train") / (rows * manifest.row_tokens * len(axes))
        log(f"{work.name}: rows are filled to {filled:.1%}")
    if manifest.cut_examples:
        log(
            f"{work.name}: {manifest.cut_examples:,} examples were longer than "
            f"data.sequence_length={manifest.row_tokens:,} tokens and were cut"
        )
    if manifest.skipped_records:
        log(f"{work.name}: left out {manifest.skipped_records:,} bad rows")
    missing = [n for n, c in zip(manifest.labels, manifest.label_counts, strict=True) if not c]
    if missing:
        log(f"{work.name}: no example to train on has the label {', '.join(missing[:8])}")
