"""Examples as the model sees them, for a terminal: what is learnt is coloured, or in >>...<<."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np

from trainer.batch import CHOSEN, IGNORED, REJECTED
from trainer.data.audit_stores import examples_at
from trainer.data.encodings.base import EXAMPLES
from trainer.data.encodings.example import Array, Example
from trainer.data.example_store import ExampleStore
from trainer.data.task_tokenizer import TaskTokenizer

_GREEN, _END = "\x1b[1;32m", "\x1b[0m"


def beginning(folder: Path, *, count: int, colour: bool) -> list[str]:
    """The first examples of a store's train split, one text each."""
    store = ExampleStore.open(folder)
    tokenizer = TaskTokenizer.open(folder)
    manifest = store.manifest
    numbers = np.arange(min(count, store.train.num_examples), dtype=np.int64)
    if not len(numbers):
        return []
    speaks = manifest.terms != EXAMPLES and not manifest.labels
    return [
        shown(example, tokenizer, labels=manifest.labels, speaks=speaks, colour=colour)
        for example in examples_at(store, store.train, numbers)
    ]


def shown(
    example: Example,
    tokenizer: TaskTokenizer,
    *,
    labels: Sequence[str],
    speaks: bool,
    colour: bool,
) -> str:
    """Lines of one example. `speaks`: its labels are ids that the model is to say."""
    arrays = example.arrays
    lines = [f"--- {example.place}" + "".join(f", {note}" for note in sorted(example.notes))]
    if "decoder_inputs" in arrays:
        lines.append(_decoded(tokenizer, arrays["inputs"]))
        lines.append("=> " + _marked(_decoded(tokenizer, arrays["labels"]), colour))
    elif "answers" in arrays:
        for mark, number in (("+", CHOSEN), ("-", REJECTED)):
            its = arrays["answers"] == number
            text = _spoken(tokenizer, arrays["inputs"][its], arrays["labels"][its], colour)
            lines.append(f"{mark} {text}")
    elif "labels" in arrays and speaks:
        lines.append(_spoken(tokenizer, arrays["inputs"], arrays["labels"], colour))
    elif "labels" in arrays:
        lines.append(_tagged(tokenizer, arrays, labels, colour))
    elif "spans" in arrays:
        first, last = (int(n) for n in arrays["spans"])
        learnt = np.zeros(example.length, dtype=bool)
        learnt[first : last + 1] = True
        lines.append(_runs(tokenizer, arrays["inputs"], learnt, colour))
    else:
        lines.append(_decoded(tokenizer, arrays["inputs"]))
        lines += [f"=> {_marked(text, colour)}" for text in _answers(arrays, labels)]
    return "\n".join(lines)


def _spoken(tokenizer: TaskTokenizer, ids: Array, labels: Array, colour: bool) -> str:
    """Labels stand one place before what they say; the last may say a token that is no input."""
    learnt = np.append(False, labels != IGNORED)
    spoken = np.append(ids, labels[-1] if labels[-1] != IGNORED else 0)
    if labels[-1] == IGNORED:
        learnt, spoken = learnt[:-1], spoken[:-1]
    return _runs(tokenizer, spoken, learnt, colour)


def _runs(tokenizer: TaskTokenizer, ids: Array, learnt: Array, colour: bool) -> str:
    """Runs are decoded whole: a character can be several tokens."""
    made = []
    pairs = zip(ids.tolist(), learnt.tolist(), strict=True)
    for is_learnt, run in groupby(pairs, key=lambda pair: pair[1]):
        text = tokenizer.decode([token for token, _ in run])
        made.append(_marked(text, colour) if is_learnt else text)
    return "".join(made)


def _tagged(
    tokenizer: TaskTokenizer, arrays: Mapping[str, Array], labels: Sequence[str], colour: bool
) -> str:
    made = []
    for token, label in zip(arrays["inputs"].tolist(), arrays["labels"].tolist(), strict=True):
        text = tokenizer.decode([token])
        made.append(text if label == IGNORED else text + _marked(f"/{labels[label]}", colour))
    return " ".join(made)


def _answers(arrays: Mapping[str, Array], labels: Sequence[str]) -> Iterator[str]:
    for number in arrays.get("classes", ()):
        at = int(number)
        yield labels[at] if 0 <= at < len(labels) else f"label {at}"
    if "targets" in arrays and labels:
        yield ", ".join(labels[int(n)] for n in np.flatnonzero(arrays["targets"])) or "no label"
    elif "targets" in arrays:
        yield ", ".join(f"{value:g}" for value in arrays["targets"])


def _decoded(tokenizer: TaskTokenizer, ids: Array) -> str:
    return tokenizer.decode(ids.tolist())


def _marked(text: str, colour: bool) -> str:
    return f"{_GREEN}{text}{_END}" if colour else f">>{text}<<"
