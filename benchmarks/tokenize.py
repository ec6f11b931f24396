"""`python -m benchmarks.tokenize [--json FILE]`: text -> token store, against what people use.

Seconds of CPU for one megabyte of text (all threads and processes counted), the same corpus and
byte-level BPE for all. Ours ends with shards, index, checksums and manifest on disk, fsynced; the
peers end with token ids in memory or in an Arrow file. Wall time is in the JSON's second table.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import corpus
from benchmarks.rounds import interleaved, report, summary
from trainer.data.encoder import accelerator_fault
from trainer.data.tokenizer import TextTokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--megabytes", type=float, default=32)
    parser.add_argument("--peer-megabytes", type=float, default=2)
    given = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    texts = corpus.texts(int(given.megabytes * 1e6))
    few = corpus.texts(int(given.peer_megabytes * 1e6))  # the peers are slow, and as slow per byte
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer = corpus.tokenizer_folder(folder / "tokenizer", texts[::4])
        fault = accelerator_fault(tokenizer, sample=few[:20])
        walls: dict[str, list[float]] = {}
        ours = {"ours, with tokenizers": (_ours(folder, tokenizer, accelerated=False), few)}
        if fault is None:
            ours = {
                "ours, with gigatoken": (_ours(folder, tokenizer, accelerated=True), texts)
            } | ours
        else:
            print(f"gigatoken left out: {fault}")
        peers = {
            "tokenizers encode_batch_fast": (_batch(tokenizer, "encode_batch_fast"), few),
            "tokenizers encode_batch": (_batch(tokenizer, "encode_batch"), few),
            "datasets.map + fast tokenizer": (_mapped(tokenizer), few),
        }
        arms = {n: _clocked(n, run, on, walls) for n, (run, on) in (ours | peers).items()}
        found = interleaved(arms, rounds=given.rounds)
    first = next(iter(arms))
    wall = {n: v[1:] for n, v in walls.items()}
    report("tokenize: CPU-s a MB", summary(found, ours=first), json_path=given.json)
    wall_json = given.json.with_suffix(".wall.json") if given.json else None
    report("tokenize: wall s a MB", summary(wall, ours=first), json_path=wall_json)


def _clocked(
    name: str, run: Callable[[list[str]], Any], on: list[str], walls: dict[str, list[float]]
) -> Callable[[], float]:
    megabytes = sum(len(t.encode()) for t in on) / 1e6

    def clocked() -> float:
        cpu, wall = corpus.cpu_seconds(), time.perf_counter()
        run(on)
        walls.setdefault(name, []).append((time.perf_counter() - wall) / megabytes)
        return (corpus.cpu_seconds() - cpu) / megabytes

    return clocked


def _ours(folder: Path, tokenizer: Path, *, accelerated: bool) -> Callable[[list[str]], Any]:
    def run(texts: list[str]) -> None:
        made = corpus.store(folder / "store", texts, tokenizer=tokenizer, accelerated=accelerated)
        shutil.rmtree(made.path)

    return run


def _batch(tokenizer: Path, method: str) -> Callable[[list[str]], Any]:
    vendor = TextTokenizer.open(tokenizer).tokenizer

    def run(texts: list[str]) -> int:
        return sum(len(e.ids) for e in getattr(vendor, method)(texts, add_special_tokens=False))

    return run


def _mapped(tokenizer: Path) -> Callable[[list[str]], Any]:
    import datasets
    from transformers import PreTrainedTokenizerFast

    datasets.disable_progress_bars()
    fast = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer / "tokenizer.json"))

    def run(texts: list[str]) -> None:
        rows = datasets.Dataset.from_dict({"text": texts})
        rows.map(
            lambda batch: {"input_ids": fast(batch["text"])["input_ids"]},
            batched=True,
            remove_columns=["text"],
            load_from_cache_file=False,
        )

    return run


if __name__ == "__main__":
    main()
