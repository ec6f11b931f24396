"""The peer's arm of learning from random weights, and what scores both arms' folders.

    python -m benchmarks.scratch_hf train SPEC.json RESULT.json
    python -m benchmarks.scratch_hf score SPEC.json RESULT.json

The model is made from the configuration that our export wrote; optimizer, rates, precision and the
number of examples are ours. Scores are those of transformers' own classes on the same examples.
"""

from __future__ import annotations

import json
import math
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.finetune_tasks import Rows, read_rows
from benchmarks.scratch_tasks import PAIRS_OF, pair_rows

Spec = Mapping[str, Any]
IGNORED = -100
_SPECIALS = 4  # the last of BERT's five
_MOST_SAID, _AT_ONCE = 64, 32  # tokens of a translation; examples scored at once
_KINDS = {
    "translate": "AutoModelForSeq2SeqLM",
    "pairs": "AutoModelForPreTraining",
    "chat": "AutoModelForCausalLM",
}


class _Counted:
    """A collator, and how much of what it made is text."""

    def __init__(self, collator: Any) -> None:
        self._collator = collator
        self.tokens = self.places = 0

    def __call__(self, features: Rows) -> Any:
        batch = self._collator(features)
        read = batch["attention_mask"]
        self.tokens += int(read.sum())
        self.places += read.numel()
        if read.shape != batch["labels"].shape:  # of an encoder-decoder: the text it writes
            self.tokens += int((batch["labels"] != IGNORED).sum())
            self.places += batch["labels"].numel()
        return batch


def train(spec: Spec) -> dict[str, Any]:
    """Folders of `save_every` steps lie under spec["output"]."""
    import transformers

    torch.set_num_threads(1)
    transformers.set_seed(spec["seed"])
    tokenizer = _tokenizer(spec)
    kind: Any = getattr(transformers, _KINDS[spec["task"]])
    model = kind.from_config(transformers.AutoConfig.from_pretrained(spec["config"]))
    counted = _Counted(_collator(spec, tokenizer))
    examples = spec["steps"] * spec["batch"]
    trainer: Any = transformers.Trainer(
        model=model,
        args=_arguments(spec),
        train_dataset=_features(spec, tokenizer, read_rows(Path(spec["train"])), most=examples),
        data_collator=counted,
    )
    began = time.perf_counter()
    trainer.train()
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens": counted.tokens,
        "useful": counted.tokens / counted.places,
        "train_s": time.perf_counter() - began,
    }


def _arguments(spec: Spec) -> Any:
    from transformers import TrainingArguments

    return TrainingArguments(
        output_dir=spec["output"],
        max_steps=spec["steps"],
        per_device_train_batch_size=spec["batch"],
        learning_rate=spec["learning_rate"],
        lr_scheduler_type="linear",
        warmup_steps=spec["warmup_steps"],
        weight_decay=0.01,
        max_grad_norm=1.0,
        bf16=True,
        seed=spec["seed"],
        data_seed=spec["seed"],
        use_cpu=True,
        save_steps=spec["save_every"],
        save_only_model=True,
        report_to=[],
        disable_tqdm=True,
        logging_steps=50,
    )


def _tokenizer(spec: Spec) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(spec["tokenizer"])


def _collator(spec: Spec, tokenizer: Any) -> Any:
    from transformers import DataCollatorForLanguageModeling, DataCollatorForSeq2Seq

    if spec["task"] == "pairs":
        return DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15)
    return DataCollatorForSeq2Seq(tokenizer)


def _features(spec: Spec, tokenizer: Any, rows: Rows, *, most: int) -> Rows:
    """`most`: pairs of stretches are drawn anew each time the text comes again."""
    match spec["task"]:
        case "translate":
            made = tokenizer([r["source"] for r in rows])
            labels = tokenizer([r["target"] for r in rows])["input_ids"]
            asked = zip(made["input_ids"], labels, strict=True)
            return [{"input_ids": ids, "labels": said} for ids, said in asked]
        case "chat":
            return [_dialogue(tokenizer, r["messages"], spec["row_tokens"]) for r in rows]
        case _:
            return _pairs(spec, tokenizer, rows, most=most)


def _dialogue(tokenizer: Any, messages: Rows, longest: int) -> dict[str, Any]:
    """The answer is learnt, its end included; what a template writes behind it is left out."""
    ids = tokenizer.apply_chat_template(messages, return_dict=False)
    asked = tokenizer.apply_chat_template(
        messages[:-1], add_generation_prompt=True, return_dict=False
    )
    end = len(ids) - ids[::-1].index(tokenizer.eos_token_id)
    labels = [IGNORED] * len(asked) + ids[len(asked) : end]
    return {"input_ids": ids[:end][:longest], "labels": labels[:longest]}


def _pairs(spec: Spec, tokenizer: Any, rows: Rows, *, most: int) -> Rows:
    documents = tokenizer([r["text"] for r in rows], add_special_tokens=False)["input_ids"]
    start, end = tokenizer.convert_tokens_to_ids(list(PAIRS_OF))
    found: Rows = []
    for epoch in range(most):  # an epoch has one row at least
        drawn = pair_rows(documents, row_tokens=spec["row_tokens"], seed=spec["seed"] + epoch)
        for one, other, label in drawn:
            first, second = [start, *one, end], [*other, end]
            segments = [0] * len(first) + [1] * len(second)
            row = {"input_ids": first + second, "token_type_ids": segments}
            found.append(row | {"next_sentence_label": label})
        if len(found) >= most:
            break
    return found[:most]


@torch.no_grad()
def score(spec: Spec) -> list[dict[str, float]]:
    """Of each of spec["folders"], on the same examples in the same order; last the baseline's."""
    import transformers

    torch.set_num_threads(1)
    tokenizer = _tokenizer(spec)
    rows = read_rows(Path(spec["test"]))
    if spec["task"] != "pairs":
        rows = random.Random(0).sample(rows, min(spec["held_out"], len(rows)))
    features = _features({**spec, "seed": 0}, tokenizer, rows, most=spec["held_out"])
    kind: Any = getattr(transformers, _KINDS[spec["task"]])
    found = []
    for folder in spec["folders"]:
        model = kind.from_pretrained(folder, dtype=torch.float32).eval()
        if spec["task"] == "translate":
            found.append(_bleu(model, tokenizer, rows, features))
        else:
            found.append(_losses(spec, model, tokenizer, features))
    return [*found, _baseline(spec, tokenizer, rows, features)]


def _baseline(spec: Spec, tokenizer: Any, rows: Rows, features: Rows) -> dict[str, float]:
    """The better of a source copied and the commonest target; else tokens by their frequency."""
    trained = read_rows(Path(spec["train"]))
    if spec["task"] == "translate":
        expected = [row["target"] for row in rows]
        [(commonest, _)] = Counter(row["target"] for row in trained).most_common(1)
        said = ([row["source"] for row in rows], [commonest] * len(rows))
        return {"bleu": max(bleu_of(one, expected) for one in said)}
    most = len(trained) if spec["task"] == "chat" else spec["held_out"] * 8
    seen = Counter(_learnt(_features({**spec, "seed": 0}, tokenizer, trained, most=most)))
    least, size = sum(seen.values()), len(tokenizer)
    asked = list(_learnt(features))
    loss = -sum(math.log((seen[token] + 1) / (least + size)) for token in asked) / len(asked)
    return {"masked_loss" if spec["task"] == "pairs" else "loss": loss}


def _learnt(features: Rows) -> Iterator[int]:
    """What a loss may ask for: labels, or any token of a text that parts are hidden of."""
    for one in features:
        if "labels" in one:
            yield from (token for token in one["labels"] if token != IGNORED)
        else:
            yield from (token for token in one["input_ids"] if token > _SPECIALS)


def _bleu(model: Any, tokenizer: Any, rows: Rows, features: Rows) -> dict[str, float]:
    said = [""] * len(rows)
    by_length = sorted(range(len(rows)), key=lambda n: len(features[n]["input_ids"]))
    for begin in range(0, len(rows), _AT_ONCE):
        numbers = by_length[begin : begin + _AT_ONCE]
        padded = tokenizer.pad(
            [{"input_ids": features[n]["input_ids"]} for n in numbers], return_tensors="pt"
        )
        written = model.generate(
            input_ids=padded["input_ids"],
            attention_mask=padded["attention_mask"],
            max_new_tokens=_MOST_SAID,
            do_sample=False,
            num_beams=1,
        )
        for number, text in zip(
            numbers, tokenizer.batch_decode(written, skip_special_tokens=True), strict=True
        ):
            said[number] = text.strip()
    return {"bleu": bleu_of(said, [row["target"] for row in rows])}


def bleu_of(said: Sequence[str], expected: Sequence[str]) -> float:
    from sacrebleu.metrics.bleu import BLEU

    return float(BLEU().corpus_score(list(said), [list(expected)]).score)


def _losses(spec: Spec, model: Any, tokenizer: Any, features: Rows) -> dict[str, float]:
    """Means over labelled tokens. What is hidden is the same for every folder."""
    collator = _collator(spec, tokenizer)
    torch.manual_seed(0)
    loss = right = terms = told = 0.0
    for begin in range(0, len(features), _AT_ONCE):
        batch = collator(features[begin : begin + _AT_ONCE])
        labels = batch.pop("labels")
        nexts = batch.pop("next_sentence_label", None)
        out = model(**batch)
        logits = out.prediction_logits if nexts is not None else out.logits[:, :-1]
        labels = labels if nexts is not None else labels[:, 1:]
        at = labels != IGNORED
        loss += torch.nn.functional.cross_entropy(
            logits[at].float(), labels[at], reduction="sum"
        ).item()
        right += (logits[at].argmax(-1) == labels[at]).sum().item()
        terms += at.sum().item()
        if nexts is not None:
            told += (out.seq_relationship_logits.argmax(-1) == nexts).sum().item()
    means = {"loss": loss / terms, "token_accuracy": right / terms}
    if spec["task"] != "pairs":
        return means
    means["masked_loss"] = means.pop("loss")
    return means | {"next_sentence_accuracy": told / len(features)}


if __name__ == "__main__":
    _do = {"train": train, "score": score}[sys.argv[1]]
    Path(sys.argv[3]).write_text(json.dumps(_do(json.loads(Path(sys.argv[2]).read_text()))))
