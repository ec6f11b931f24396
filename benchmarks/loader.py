"""`python -m benchmarks.loader [--json FILE]`: CPU of the training process for one micro-batch.

8 rows of 512 tokens with labels and positions, against torch's DataLoader and `datasets`, which
give the tokens alone. Microseconds of CPU a batch; threads of the process included.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import corpus
from benchmarks.rounds import interleaved, report, summary
from trainer.data.row_shape import RowShape, StreamSource
from trainer.data.store import TokenStore
from trainer.data.stream import token_stream

ROWS, LENGTH = 8, 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts = corpus.texts(16_000_000)
        tokenizer = corpus.tokenizer_folder(folder / "tokenizer", texts[:100])
        store = corpus.store(folder / "store", texts, tokenizer=tokenizer, accelerated=False)
        flat = corpus.flat_tokens(store)
        rows = _dataset_rows(flat)
        arms = {
            "ours": _per_batch(_ours(store, prefetch=0), 1000),
            "ours, read ahead by the thread": _per_batch(_ours(store, prefetch=8), 1000),
            "torch DataLoader over memmap, 0 workers": _per_batch(_torch(flat, workers=0), 300),
            "torch DataLoader over memmap, 1 worker": _per_batch(_torch(flat, workers=1), 100),
            "datasets, numpy format": _per_batch(_datasets(rows, "numpy"), 100),
            "datasets + LM collator (Trainer's default)": _per_batch(_collated(rows), 30),
        }
        found = summary(interleaved(arms, rounds=given.rounds), ours="ours")
    report("loader: us of CPU a batch of 8 x 512", found, json_path=given.json)


def _per_batch(batches: Iterator[Any], count: int) -> Callable[[], float]:
    def run() -> float:
        begin = corpus.cpu_seconds()
        for _ in range(count):
            next(batches)
        return (corpus.cpu_seconds() - begin) / count * 1e6

    return run


def _ours(store: TokenStore, *, prefetch: int) -> Iterator[Any]:
    shape = RowShape(
        global_batch_size=ROWS, micro_batch_size=ROWS, sequence_length=LENGTH, packing=True
    )
    stream = token_stream(
        [StreamSource("stdlib", store, 1.0)],
        shape=shape,
        seed=0,
        rank=0,
        world_size=1,
        prefetch_steps=prefetch,
    )
    step = 0
    while True:
        step += 1
        yield stream.step(step)


class _Memmap(torch.utils.data.Dataset[torch.Tensor]):
    def __init__(self, flat: np.ndarray) -> None:
        self._flat = flat

    def __len__(self) -> int:
        return (len(self._flat) - 1) // LENGTH

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(self._flat[index * LENGTH : (index + 1) * LENGTH].astype(np.int64))


def _torch(flat: np.ndarray, *, workers: int) -> Iterator[Any]:
    loader = torch.utils.data.DataLoader(
        _Memmap(flat), batch_size=ROWS, shuffle=True, num_workers=workers
    )
    while True:
        yield from loader


def _dataset_rows(flat: np.ndarray) -> Any:
    import datasets

    datasets.disable_progress_bars()
    count = min(8000, len(flat) // LENGTH)
    rows = flat[: count * LENGTH].reshape(count, LENGTH).astype(np.int32)
    return datasets.Dataset.from_dict({"input_ids": list(rows)})


def _datasets(rows: Any, form: str) -> Iterator[Any]:
    def stack(batch: list[dict[str, np.ndarray]]) -> torch.Tensor:
        return torch.from_numpy(np.stack([row["input_ids"] for row in batch]).astype(np.int64))

    loader = torch.utils.data.DataLoader(
        rows.with_format(form), batch_size=ROWS, shuffle=True, collate_fn=stack
    )
    while True:
        yield from loader


def _collated(rows: Any) -> Iterator[Any]:
    from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerFast

    from trainer.data.tokenizer import TextTokenizer

    with tempfile.TemporaryDirectory() as name:
        folder = corpus.tokenizer_folder(Path(name) / "t", ["a small text"], vocab_size=257)
        vendor = TextTokenizer.open(folder).tokenizer
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=vendor, pad_token="<|endoftext|>")
    loader = torch.utils.data.DataLoader(
        rows,
        batch_size=ROWS,
        shuffle=True,
        collate_fn=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    )
    while True:
        yield from loader


if __name__ == "__main__":
    main()
