"""Corpus -> tokenizer -> one token store a source, under data.store_root.

Up to date: returns in milliseconds. Interrupted: goes on behind the last finished shard. Two at the
same time: the second waits for the lock and finds the work done.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from trainer.config.schema import Config
from trainer.config.sections.data import (
    CustomSource,
    DataSection,
    PretrainedTokenizer,
    TrainedTokenizer,
)
from trainer.config.sections.example_data import ExamplesSection
from trainer.data.back_translated import Translate
from trainer.data.encode_pool import EncodeSettings, encoded
from trainer.data.encoder import AcceleratorDiffers, EncodedChunk, accelerator_fault, token_dtype
from trainer.data.order import is_held_out
from trainer.data.prepare_examples import prepare_examples
from trainer.data.preparing import Log, locked, nothing_written
from trainer.data.progress import Progress
from trainer.data.sample import sampled, total_bytes
from trainer.data.sources import AnySource, Rejected, custom_digest, documents
from trainer.data.store_files import space_named
from trainer.data.store_writer import StoreWriter
from trainer.data.tokenizer import CONFIG, TextTokenizer, pretrained, tokenizer_digest, trained
from trainer.errors import DataError
from trainer.plan import StorePlan
from trainer.records.store_lookup import (
    PREPARATION_VERSION,
    StoreKeys,
    find_stores,
    found_store,
    store_keys,
)
from trainer.records.token_store import TOKENIZER, StoreManifest

CHECK_BYTES = 400_000  # of each source, encoded twice before gigatoken is used: a quarter second
SMALL_BYTES = 64 << 20  # below this, starting processes costs more than it saves


@dataclass(frozen=True)
class _Work:
    """What the preparation of one source needs to know."""

    name: str
    source: AnySource
    data: DataSection
    trust: tuple[str, ...]
    key: str
    folder: Path
    tokenizer: TextTokenizer
    tokenizer_folder: Path


def prepare(config: Config, *, log: Log, translate: Translate | None = None) -> list[StorePlan]:
    """Make every store that is missing or stale; the stores in the order of data.sources.
    `translate`: for data.augment.back_translation, see back_translated.py.

    Raises: Refused for a corpus or a tokenizer that will not do, as far as that shows before a
    store is begun (the beginning of every source, the tokenizer's sample), and for a custom source
    outside run.trust; DataError for what shows later, and for a disk that will not do.
    """
    if isinstance(config.data, ExamplesSection):
        return prepare_examples(config, config.data, log=log, translate=translate)
    return _prepare_text(config, config.data, log=log)


def _prepare_text(config: Config, data: DataSection, *, log: Log) -> list[StorePlan]:
    plain = data.model_dump(mode="json")
    with nothing_written():
        digests = {
            name: custom_digest(source, trust=config.run.trust, name=name)
            for name, source in data.sources.items()
            if isinstance(source, CustomSource)
        }
        found = find_stores(plain, custom_digests=digests)
    if found is None:
        keys = store_keys(plain, custom_digests=digests)
        assert keys is not None  # every custom source has its digest
        with nothing_written():
            beginnings = _beginnings(config, data, keys)
            if isinstance(data.tokenizer, PretrainedTokenizer):
                pretrained(data.tokenizer)
        _make(config, data, keys, beginnings=beginnings, log=log)
        found = find_stores(plain, custom_digests=digests)
    if found is None:
        raise DataError("the corpus changed while it was prepared; run the command again")
    return [StorePlan(**asdict(store)) for store in found]


def _beginnings(config: Config, data: DataSection, keys: StoreKeys) -> dict[str, list[str]]:
    """The first texts of every source that has no store yet.

    Raises: DataError if a source cannot be read or holds no text.
    """
    found = {}
    for name, source in data.sources.items():
        if found_store(keys.store_folder(name), source=name, weight=source.weight) is None:
            found[name] = _check_sample(name, source, trust=config.run.trust)
            if not found[name]:
                raise DataError(f"data.sources.{name} holds no text; correct its paths or settings")
    return found


def _make(
    config: Config,
    data: DataSection,
    keys: StoreKeys,
    *,
    beginnings: dict[str, list[str]],
    log: Log,
) -> None:
    with space_named(keys.root):
        keys.root.mkdir(mode=0o700, parents=True, exist_ok=True)
    with locked(keys.tokenizer_folder, log=log):
        tokenizer = _tokenizer(config, data, keys.tokenizer_folder, log=log)
    for name, source in data.sources.items():
        folder = keys.store_folder(name)
        with locked(folder, log=log):
            if found_store(folder, source=name, weight=source.weight) is not None:
                continue
            if folder.exists():
                log(f"{folder} is not whole; preparing it again")
            work = _Work(
                name=name,
                source=source,
                data=data,
                trust=config.run.trust,
                key=keys.stores[name],
                folder=folder,
                tokenizer=tokenizer,
                tokenizer_folder=keys.tokenizer_folder,
            )
            sample = beginnings.get(name) or _check_sample(name, source, trust=config.run.trust)
            _make_store(work, sample=sample, log=log)


def _tokenizer(config: Config, data: DataSection, folder: Path, *, log: Log) -> TextTokenizer:
    if (folder / TOKENIZER).exists():
        return TextTokenizer.open(folder)
    with nothing_written():
        made = _new_tokenizer(config, data, log=log)
    incoming = folder.with_name(f"{folder.name}.incoming")
    with space_named(folder):
        shutil.rmtree(incoming, ignore_errors=True)
        incoming.mkdir(mode=0o700)
        made.write(incoming)
        incoming.replace(folder)
    return made


def _new_tokenizer(config: Config, data: DataSection, *, log: Log) -> TextTokenizer:
    settings = data.tokenizer
    if not isinstance(settings, TrainedTokenizer):
        return pretrained(settings)
    log(f"training a tokenizer of {settings.vocab_size:,} entries")
    texts = sampled(data, trust=config.run.trust, num_bytes=settings.sample_bytes)
    made = trained(settings, texts)
    if made.vocab_size < settings.vocab_size:
        log(f"the corpus is so small that it has {made.vocab_size:,} entries")
    return made


def _make_store(work: _Work, *, sample: list[str], log: Log) -> None:
    fault = accelerator_fault(work.tokenizer_folder, sample=sample)
    if fault is not None:
        log(f"{work.name}: encoding with tokenizers, for gigatoken cannot be used: {fault}")
    try:
        _write_store(work, accelerated=fault is None, log=log)
    except AcceleratorDiffers:
        log(f"{work.name}: gigatoken's ids differ from those of tokenizers; starting again without")
        _writer(work).discard()
        _write_store(work, accelerated=False, log=log)


def _check_sample(name: str, source: AnySource, *, trust: tuple[str, ...]) -> list[str]:
    texts: list[str] = []
    size = 0
    rejected = Rejected(source=name)
    for text in documents(source, trust=trust, rejected=rejected):
        texts.append(text[:CHECK_BYTES])
        size += len(texts[-1])
        if size >= CHECK_BYTES:
            break
    return texts


def _write_store(work: _Work, *, accelerated: bool, log: Log) -> None:
    writer = _writer(work)
    writer.resume()
    if writer.next_document:
        log(f"{work.name}: going on behind document {writer.next_document:,}")
    rejected = Rejected(source=work.name)
    every = documents(work.source, trust=work.trust, rejected=rejected)
    rest = islice(every, writer.next_document, None)
    settings = EncodeSettings(work.tokenizer_folder, accelerated, _num_processes(work))
    document, source_bytes = writer.next_document, writer.source_bytes
    size = total_bytes(work.source)
    progress = Progress(f"prepare {work.name}", total_bytes=size, already=source_bytes)
    try:
        for chunk in encoded(rest, settings):
            finished = _add(writer, chunk, first=document, fraction=work.data.held_out_fraction)
            document += len(chunk.lengths_D)
            source_bytes += int(chunk.text_bytes_D.sum())
            if finished:
                writer.record_progress(next_document=document, source_bytes=source_bytes)
            progress.show(source_bytes)
        progress.show(source_bytes, last=True)
        _publish(work, writer, source_bytes=source_bytes, rejected=rejected, log=log)
    finally:
        writer.close()


def _add(writer: StoreWriter, chunk: EncodedChunk, *, first: int, fraction: float) -> bool:
    """Append a chunk, whose first document has the index `first`; True if a shard was finished."""
    count = len(chunk.lengths_D)
    out = np.fromiter(
        (fraction > 0 and is_held_out(first + i, fraction) for i in range(count)),
        dtype=np.bool_,
        count=count,
    )
    if not out.any():
        return writer.add("train", tokens=chunk.tokens_N, lengths=chunk.lengths_D)
    of_tokens = np.repeat(out, chunk.lengths_D)
    finished = False
    for split, documents_in, tokens_in in (
        ("train", ~out, ~of_tokens),
        ("held_out", out, of_tokens),
    ):
        finished |= writer.add(
            split,  # type: ignore[arg-type]
            tokens=chunk.tokens_N[tokens_in],
            lengths=chunk.lengths_D[documents_in],
        )
    return finished


def _publish(
    work: _Work, writer: StoreWriter, *, source_bytes: int, rejected: Rejected, log: Log
) -> None:
    shards = writer.finish()
    dtype = token_dtype(work.tokenizer.vocab_size)
    with space_named(writer.incoming):
        for name in (TOKENIZER, CONFIG):
            shutil.copy(work.tokenizer_folder / name, writer.incoming / name)
    manifest = StoreManifest(
        source=work.name,
        dtype="uint16" if dtype.itemsize == 2 else "uint32",
        vocab_size=work.tokenizer.vocab_size,
        end_of_text_id=work.tokenizer.end_of_text_id,
        tokenizer_digest=tokenizer_digest(work.tokenizer_folder),
        preparation_key=work.key,
        code_version=PREPARATION_VERSION,
        source_bytes=source_bytes,
        skipped_documents=rejected.count,
        unigram_entropy_nats=writer.unigram_entropy(),
        shards=shards,
    )
    writer.publish(manifest)
    log(
        f"{work.name}: {manifest.num_tokens('train'):,} tokens to train on, "
        f"{manifest.num_tokens('held_out'):,} held out, in {work.folder}"
    )
    if rejected.count:
        reasons = "; ".join(rejected.examples)
        documents = "document" if rejected.count == 1 else "documents"
        log(f"{work.name}: left out {rejected.count:,} bad {documents}, such as: {reasons}")
    if work.data.held_out_fraction > 0 and not manifest.num_documents("held_out"):
        log(f"{work.name}: too few documents to hold any out; evaluation has nothing to read")


def _writer(work: _Work) -> StoreWriter:
    return StoreWriter(
        work.folder,
        key=work.key,
        dtype=token_dtype(work.tokenizer.vocab_size),
        shard_tokens=work.data.shard_tokens,
    )


def _num_processes(work: _Work) -> int:
    if work.data.num_workers:
        return work.data.num_workers if work.data.num_workers > 1 else 0
    size = total_bytes(work.source)
    cores = len(os.sched_getaffinity(0))
    return cores if cores > 1 and (size == 0 or size > SMALL_BYTES) else 0
