"""`python -m benchmarks.resume_data [--json FILE]`: time to the first batch after a resume.

A stream is constructed from a cursor and asked for its next step, at step 10, 10^3, 10^6 and 10^9,
in turn; the peer re-reads what was consumed (accelerate's skip_first_batches over an iterable data
set, which is what Trainer does with streamed data) and is measured at steps it can reach.
Milliseconds of wall time; the store's files are opened and verified within.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
        made = corpus.store(folder / "store", texts, tokenizer=tokenizer, accelerated=False)
        iterable = _iterable(made)
        arms: dict[str, Callable[[], float]] = {
            f"ours at step {step:,}": _ours(made.path, step)
            for step in (10, 1_000, 1_000_000, 1_000_000_000)
        }
        for step in (10, 300):
            arms[f"skip_first_batches at step {step:,}"] = _skipping(iterable, step)
        found = interleaved(arms, rounds=given.rounds)
    rows = summary(found, ours="ours at step 10")
    report("resume_data: ms to the first batch", rows, json_path=given.json)


def _ours(path: Path, step: int) -> Callable[[], float]:
    cursor = {"step": step, "next_sample": step * ROWS, "skipped": []}

    def run() -> float:
        begin = time.perf_counter()
        shape = RowShape(
            global_batch_size=ROWS, micro_batch_size=ROWS, sequence_length=LENGTH, packing=True
        )
        stream = token_stream(
            [StreamSource("stdlib", TokenStore.open(path), 1.0)],
            shape=shape,
            seed=0,
            rank=0,
            world_size=1,
            prefetch_steps=2,
            cursor=cursor,
        )
        stream.step(step + 1)
        taken = time.perf_counter() - begin
        stream.close()
        return taken * 1e3

    return run


def _iterable(made: TokenStore) -> Any:
    import datasets

    flat = corpus.flat_tokens(made)
    count = min(4000, len(flat) // LENGTH)
    rows = flat[: count * LENGTH].reshape(count, LENGTH).astype("int32")
    whole = datasets.Dataset.from_dict({"input_ids": list(rows)})
    return whole.to_iterable_dataset()


def _skipping(iterable: Any, step: int) -> Callable[[], float]:
    from accelerate import skip_first_batches

    def run() -> float:
        begin = time.perf_counter()
        loader = torch.utils.data.DataLoader(
            iterable.with_format("torch"), batch_size=ROWS, collate_fn=_stacked
        )
        next(iter(skip_first_batches(loader, step)))
        return (time.perf_counter() - begin) * 1e3

    return run


def _stacked(batch: list[dict[str, torch.Tensor]]) -> torch.Tensor:
    return torch.stack([row["input_ids"] for row in batch])


if __name__ == "__main__":
    main()
