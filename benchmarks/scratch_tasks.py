"""Three small tasks to learn from random weights, made from public texts by fixed rules.

translate  German sentences from English ones (Multi30k, 29,000 pairs): a T5 of 1.4 M parameters
pairs      what is hidden, and does this follow that (WikiText-2's valid and test): a BERT of 5 M
chat       worked answers to questions of arithmetic (GSM8K, 7,473 dialogues): a Llama of 4 M

Both arms read the same files and the same tokenizer, which is trained here on the training texts.
"""

from __future__ import annotations

import gzip
import itertools
import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import processors as after

from benchmarks.finetune_tasks import Rows, read_rows
from trainer.data.template import BUILT_IN

SEED = 20  # of what is held out
PAIRS_OF = ("[CLS]", "[SEP]")
StretchPair = tuple[list[int], list[int], int]  # and 1: the second is of another document


@dataclass(frozen=True)
class ScratchTask:
    """`epochs`: of the whole budget, which is under a quarter of an hour of one quiet core."""

    name: str
    score: str
    higher: bool  # is better
    overrides: tuple[str, ...]
    batch: int  # examples a step
    learning_rate: float
    epochs: float
    row_tokens: int
    held_out: int  # examples that are scored
    data: str = "examples"
    vocabulary: int = 4_096


TASKS = {
    task.name: task
    for task in (
        ScratchTask(
            "translate",
            "bleu",
            True,
            ("model=encoder_decoder_debug", "task=seq2seq", "task.prompt='{source}'"),
            batch=128,
            learning_rate=5e-3,
            epochs=8,
            row_tokens=128,
            held_out=500,
        ),
        ScratchTask(
            "pairs",
            "masked_loss",
            False,
            ("model=encoder_debug", "task=masked_lm_nsp"),
            batch=32,
            learning_rate=1e-3,
            epochs=2,
            row_tokens=128,
            held_out=256,
            data="jsonl",
            vocabulary=8_192,
        ),
        ScratchTask(
            "chat",
            "loss",
            False,
            ("model=llama_debug", "task=chat"),
            batch=32,
            learning_rate=2e-3,
            epochs=2,
            row_tokens=512,
            held_out=256,
        ),
    )
}


def write_task(task: ScratchTask, data: Path, folder: Path) -> tuple[Path, Path, Path]:
    """(train.jsonl, test.jsonl, a tokenizer's folder), made once: a trained vocabulary is not the
    same every time."""
    names = tuple(folder / name for name in ("train.jsonl", "test.jsonl", "tokenizer"))
    if not all(path.exists() for path in names):
        folder.mkdir(parents=True, exist_ok=True)
        train, test = {"translate": _sentences, "pairs": _articles, "chat": _dialogues}[task.name](
            data
        )
        for path, rows in zip(names, (train, test), strict=False):
            path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))
        _write_tokenizer(task, list(_texts(train)), names[2])
    return names[0], names[1], names[2]


def pair_rows(documents: Sequence[list[int]], *, row_tokens: int, seed: int) -> list[StretchPair]:
    """One for each stretch of a document that has a next one; another seed, other second ones."""
    draw = random.Random(seed)
    longest = (row_tokens - 3) // 2
    cut = []
    for ids in documents:
        count = max(-(-len(ids) // longest), 2)
        ends = [n * len(ids) // count for n in range(count + 1)]
        cut.append([ids[a:b] for a, b in itertools.pairwise(ends)])
    found: list[StretchPair] = []
    for number, stretches in enumerate(cut):
        for one, following in itertools.pairwise(stretches):
            if other := draw.random() < 0.5:
                where = draw.choice([n for n in range(len(cut)) if n != number])
                following = draw.choice(cut[where])
            found.append((one, following, int(other)))
    draw.shuffle(found)
    return found


def _sentences(data: Path) -> tuple[Rows, Rows]:
    return _parallel(data / "multi30k", "train"), _parallel(data / "multi30k", "test_2016_flickr")


def _parallel(folder: Path, name: str) -> Rows:
    sides = []
    for language in ("en", "de"):
        with gzip.open(folder / f"{name}.{language}.gz", "rt", encoding="utf-8") as file:
            sides.append([line.strip() for line in file])
    return [{"source": s, "target": t} for s, t in zip(*sides, strict=True) if s and t]


def _articles(data: Path) -> tuple[Rows, Rows]:
    """A tenth of the articles is held out."""
    found: list[str] = []
    for name in ("valid", "test"):
        text = (data / f"wikitext-2/{name}.txt").read_text(encoding="utf-8")
        text = re.sub(r" @(.)@ ", r"\1", text.replace("<unk>", "unk"))
        found += re.split(r"\n (?== [^=\n]+ = \n)", text)
    rows = [{"text": text.strip()} for text in found if len(text.split()) >= 64]
    random.Random(SEED).shuffle(rows)
    least = len(rows) // 10
    return rows[least:], rows[:least]


def _dialogues(data: Path) -> tuple[Rows, Rows]:
    def read(name: str) -> Rows:
        return [
            {
                "messages": [
                    {"role": "user", "content": row["question"]},
                    {"role": "assistant", "content": row["answer"]},
                ]
            }
            for row in read_rows(data / f"gsm8k/{name}.jsonl")
        ]

    return read("train"), read("test")


def _texts(rows: Rows) -> Iterator[str]:
    for row in rows:
        if "messages" in row:
            yield from (message["content"] for message in row["messages"])
        else:
            yield from row.values()


def _write_tokenizer(task: ScratchTask, texts: Sequence[str], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    made, names = (_pieces if task.name == "pairs" else _bytes)(texts, task.vocabulary)
    if task.name == "translate":
        made.post_processor = after.TemplateProcessing(
            single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
        )
    if task.name == "chat":
        names |= {"eos_token": "<|im_end|>", "chat_template": BUILT_IN["chatml"]}
    made.save(str(folder / "tokenizer.json"))
    said = {"tokenizer_class": "PreTrainedTokenizerFast", **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(said))


def _bytes(texts: Sequence[str], size: int) -> tuple[Tokenizer, dict[str, str]]:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    specials = ["<pad>", "</s>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    return made, {"pad_token": "<pad>", "eos_token": "</s>"}


def _pieces(texts: Sequence[str], size: int) -> tuple[Tokenizer, dict[str, str]]:
    names = {name: f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=size, special_tokens=list(names.values()), show_progress=False
    )
    made.train_from_iterator(texts, trainer)
    made.post_processor = after.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return made, {f"{name}_token": text for name, text in names.items()}
