"""How much of a step is text: packed rows beside padding, on the lengths of four public sets.

    python -m benchmarks.packing [--data FOLDER] [--tokenizer FOLDER] [--trl PYTHON]

ours      rows packed as `longhaul prepare` packs them, in our order, of the width of the reader
dynamic   Hugging Face's Trainer: batches of examples, each padded to its longest
grouped   the same with group_by_length (its own LengthGroupedSampler)
trl ...   TRL's pack_dataset; bfd rows flattened without padding, as its SFTTrainer does; `wrapped`
          fills every row by cutting examples in two, how many is said

Useful: tokens of text over (ranks x positions of the rank that has most), of a step: the others
wait for it. Batches are dealt to ranks one after another, as accelerate does. All arms have about
as many tokens a rank and step. Padding alone: attention over a row that holds several examples is
not in these figures. TRL is asked in a Python of its own (--trl); without it its rows are missing.

Exit code 1: ours below 99.5 % anywhere, unless the set is so small that its last row alone is more
than that: where there are as few rows as any packing can have. Takes a minute.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.finetune_tasks import data_folder
from benchmarks.packing_trl import STRATEGIES
from benchmarks.paired import machine, write_result
from trainer.data.best_fit import packed_rows, windows
from trainer.data.exact_fit import exact_rows
from trainer.data.example_reader import MULTIPLE
from trainer.data.order import Indices, order_keys, permuted
from trainer.data.row_shape import RowShape

WORLDS, PROMISE = (1, 8, 64), 0.995
_STEPS, _MICRO = 60, 8  # steps looked at; examples a rank and step of the padded arms
_SEED = 20
Texts = Iterator[list[str]]  # of an example: what is put one behind the other


@dataclass(frozen=True)
class Set:
    """`row_tokens`: several times the mean, and the longest example is whole."""

    name: str
    row_tokens: int
    read: Callable[[Path], Texts]


def _agnews(data: Path) -> Texts:
    with (data / "ag_news/ag_news.csv").open(newline="") as file:
        for _, title, text in csv.reader(file):
            yield [f"{title} {text}"]


def _gsm8k(data: Path) -> Texts:
    for row in _lines(data / "gsm8k/train.jsonl"):
        yield [row["question"], row["answer"]]


def _dialogsum(data: Path) -> Texts:
    for name in ("dev", "test"):
        for row in _lines(data / f"dialogsum/{name}.jsonl"):
            yield [row["dialogue"], row.get("summary") or row["summary1"]]


def _multi30k(data: Path) -> Texts:
    paths = [data / f"multi30k/train.{language}.gz" for language in ("en", "de")]
    with gzip.open(paths[0], "rt") as sources, gzip.open(paths[1], "rt") as targets:
        for source, target in zip(sources, targets, strict=True):
            yield [source.strip(), target.strip()]


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open() as file:
        yield from map(json.loads, file)


SETS = (
    Set("agnews", 512, _agnews),
    Set("gsm8k", 1024, _gsm8k),
    Set("dialogsum", 2048, _dialogsum),
    Set("multi30k", 512, _multi30k),
)


# --- positions of each rank at each step: (steps, world), and text in them ------------------------

Work = tuple[Indices, Indices]  # (text of a step, positions of its busiest rank), of each step


def ours(rows: Sequence[Sequence[int]], row_tokens: int, *, world: int, micro: int) -> Work:
    """The reader's rule: a micro-batch is as wide as its longest row, rounded up."""
    filled = np.array([sum(row) for row in rows], dtype=np.int64)
    shape = RowShape(
        global_batch_size=micro * world,
        micro_batch_size=micro,
        sequence_length=row_tokens,
        packing=True,
    )
    samples = np.arange(_STEPS * micro * world, dtype=np.int64)
    keys = order_keys(_SEED, "examples", epochs=samples // len(filled))
    order = permuted(samples % len(filled), len(filled), key=keys)
    tokens = filled[order].reshape(_STEPS, micro * world)
    by_rank = np.stack([tokens[:, shape.rows_of(r, world)[0]] for r in range(world)], axis=1)
    widths = np.minimum(-(-by_rank.max(2) // MULTIPLE) * MULTIPLE, row_tokens)
    return tokens.sum(1), micro * widths.max(1)


def padded(lengths: Indices, orders: Iterator[Indices], *, world: int) -> Work:
    """Batches of `_MICRO` examples, padded to their longest, dealt to the ranks in turn."""
    batches = _dealt(lengths, orders, world=world, size=_MICRO)
    return batches.sum((1, 2)), _MICRO * batches.max(2).max(1)


def flattened(rows: Sequence[Sequence[int]], *, world: int, micro: int) -> Work:
    """Rows laid one behind the other without padding; ranks differ by how full theirs are."""
    filled = np.array([sum(row) for row in rows], dtype=np.int64)
    batches = _dealt(filled, _shuffled(len(filled)), world=world, size=micro)
    return batches.sum((1, 2)), batches.sum(2).max(1)


def _dealt(lengths: Indices, orders: Iterator[Indices], *, world: int, size: int) -> Indices:
    """(steps, world, size) lengths; the last batches of an epoch that fill no step are left out."""
    step, found, steps = world * size, [], 0
    while steps < _STEPS:
        order = next(orders)
        if len(order) < step:  # a set smaller than a step: the next epoch goes on with it
            order = np.concatenate([order, *(next(orders) for _ in range(step // len(order)))])
        whole = len(order) // step
        found.append(lengths[order[: whole * step]].reshape(whole, world, size))
        steps += whole
    return np.concatenate(found)[:_STEPS]


def _shuffled(count: int) -> Iterator[Indices]:
    chance = np.random.default_rng(_SEED)
    while True:
        yield chance.permutation(count)


def _grouped(lengths: Indices) -> Iterator[Indices]:
    from transformers.trainer_pt_utils import LengthGroupedSampler

    generator = torch.Generator().manual_seed(_SEED)
    while True:
        sampler = LengthGroupedSampler(_MICRO, lengths=lengths.tolist(), generator=generator)
        yield np.array(list(sampler), dtype=np.int64)


def useful(work: Work, *, world: int) -> float:
    tokens, busiest = work
    return float(tokens.sum() / (world * busiest.sum()))


# --- the arms ------------------------------------------------------------------------------------


def packed(lengths: Indices, row_tokens: int) -> list[list[int]]:
    """Lengths in each row, by the better of the two ways, as preparation takes them."""
    ways = (list(way(windows(lengths), row_tokens)) for way in (packed_rows, exact_rows))
    return [[int(lengths[number]) for number in row] for row in min(ways, key=len)]


def measured(one: Set, lengths: Indices, trl: Path | None) -> dict[str, Any]:
    """Shares by arm and world, and what each arm did to examples."""
    cut = np.minimum(lengths, one.row_tokens)  # all arms but `wrapped` and `bfd_split`
    rows = packed(cut, one.row_tokens)
    micro = max(1, round(_MICRO * float(cut.mean()) / one.row_tokens))
    arms: dict[str, Callable[[int], Work]] = {
        "ours": lambda world: ours(rows, one.row_tokens, world=world, micro=micro),
        "dynamic": lambda world: padded(cut, _shuffled(len(cut)), world=world),
        "grouped": lambda world: padded(cut, _grouped(cut), world=world),
    }
    theirs = _of_trl(lengths, one.row_tokens, trl) if trl is not None else {}
    for name in STRATEGIES:
        if name in theirs:
            arms[f"trl {name}"] = lambda world, name=name: flattened(  # type: ignore[misc]
                theirs[name], world=world, micro=micro
            )
    found = {name: [useful(arm(w), world=w) for w in WORLDS] for name, arm in arms.items()}
    pieces = {f"trl {n}": _in_two(lengths, one.row_tokens, n) for n in theirs if n in STRATEGIES}
    return {
        "row_tokens": one.row_tokens,
        "rows": len(rows),
        "fewest rows": -(-int(cut.sum()) // one.row_tokens),
        "rows a rank": micro,
        "examples": len(lengths),
        "mean": float(lengths.mean()),
        "longest": int(lengths.max()),
        "longer": int((lengths > one.row_tokens).sum()),
        "useful": found,
        "in_two": pieces,
        "trl": theirs.get("version"),
    }


def _in_two(lengths: Indices, row_tokens: int, strategy: str) -> int:
    """Examples that lie in several rows and attend to nothing of their other pieces."""
    if strategy != "wrapped":
        return int((lengths > row_tokens).sum()) if strategy == "bfd_split" else 0
    total = 0
    for begin in range(0, len(lengths), 1000):  # datasets' map packs a thousand at a time
        ends = np.cumsum(lengths[begin : begin + 1000])
        total += int(
            ((ends - lengths[begin : begin + 1000]) // row_tokens != (ends - 1) // row_tokens).sum()
        )
    return total


def _of_trl(lengths: Indices, row_tokens: int, python: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        job, result = Path(folder) / "job.json", Path(folder) / "result.json"
        job.write_text(json.dumps({"lengths": lengths.tolist(), "row_tokens": row_tokens}))
        script = Path(__file__).with_name("packing_trl.py")
        # -P: the folder of the script has a tokenize.py, which is not the library's
        command = [str(python), "-P", str(script), str(job), str(result)]
        subprocess.run(command, check=True)
        found: dict[str, Any] = json.loads(result.read_text())
    return found


def lengths_of(one: Set, data: Path, tokenizer: Any) -> Indices:
    """Tokens of every example, one more between its parts and at its end."""
    texts = list(one.read(data))
    parts = tokenizer.encode_batch([part for text in texts for part in text])
    counts = iter(len(part.ids) for part in parts)
    return np.array([sum(next(counts) + 1 for _ in text) for text in texts], dtype=np.int64)


# --- what is said --------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "packing", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=data_folder())
    parser.add_argument("--tokenizer", type=Path, help="with vocab.json and merges.txt, as GPT-2's")
    parser.add_argument("--trl", type=Path, default=None, help="a Python that can import trl")
    parser.add_argument("--json", type=Path, default=None)
    given = parser.parse_args(argv)
    if not (given.data / "gsm8k").is_dir():
        parser.error(f"{given.data} has no gsm8k and the other sets; give --data FOLDER")
    folder = given.tokenizer or given.data.parent / "tokenizers/gpt2"
    from tokenizers import ByteLevelBPETokenizer

    names = [str(folder / name) for name in ("vocab.json", "merges.txt")]
    tokenizer: Any = ByteLevelBPETokenizer(*names)
    results = {}
    for one in SETS:
        lengths = lengths_of(one, given.data, tokenizer)
        results[one.name] = measured(one, lengths, given.trl)
        _show(one.name, results[one.name])
    if given.trl is None:
        print("\ntrl was not measured (--trl PYTHON)", file=sys.stderr)
    if given.json:
        write_result(given.json, {"machine": machine(), "results": results})
    kept = [_kept(name, found) for name, found in results.items()]
    return 0 if all(kept) else 1


def _kept(name: str, found: dict[str, Any]) -> bool:
    least, rows, fewest = min(found["useful"]["ours"]), found["rows"], found["fewest rows"]
    kept = least >= PROMISE or rows == fewest
    verdict = "kept" if least >= PROMISE else "as few rows as can be" if kept else "NOT KEPT"
    print(f"{name}: ours {least:.2%}, {rows:,} rows, the fewest {fewest:,}: {verdict}")
    return kept


def _show(name: str, found: dict[str, Any]) -> None:
    print(
        f"\n{name}: {found['examples']:,} examples of {found['mean']:.0f} tokens (the longest "
        f"{found['longest']:,}); rows of {found['row_tokens']:,}, {found['rows a rank']} a rank; "
        f"{found['longer']} examples are longer"
    )
    print("| useful at ranks | " + " | ".join(map(str, WORLDS)) + " | in pieces |")
    print("|---|" + "---:|" * (len(WORLDS) + 1))
    for arm, shares in found["useful"].items():
        pieces = f"{found['in_two'].get(arm, 0):,}"
        print(f"| {arm} | " + " | ".join(f"{s:.2%}" for s in shares) + f" | {pieces} |")


if __name__ == "__main__":
    raise SystemExit(main())
