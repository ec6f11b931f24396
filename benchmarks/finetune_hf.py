"""The peer's arm of a fine-tune: Hugging Face's Trainer with its padding collators.

    python -m benchmarks.finetune_hf SPEC.json RESULT.json

Recipe, rows, optimizer and precision are those of our arm; batches are of examples, each padded to
its longest. Labels of words, windows of questions and answers out of windows are made as in
transformers' own examples (run_ner, run_qa); scores are our functions, which tests hold against
seqeval and SQuAD's rules, so that arms differ by training alone.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.finetune_tasks import Rows, read_rows
from trainer.evals.metrics.entities import EntityF1, entity_types
from trainer.evals.metrics.squad import Squad

Features = list[dict[str, Any]]
_LONGEST_ANSWER, _BEST = 30, 20  # tokens; starts and ends looked at: run_qa's defaults


class _Counted:
    """A collator, and how much of what it made is text."""

    def __init__(self, collator: Any) -> None:
        self._collator = collator
        self.tokens = self.places = 0

    def __call__(self, features: Features) -> Any:
        batch = self._collator(features)
        self.tokens += int(batch["attention_mask"].sum())
        self.places += batch["attention_mask"].numel()
        return batch


def main(spec: Mapping[str, Any]) -> dict[str, Any]:
    import transformers
    from transformers import AutoTokenizer, Trainer

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.set_seed(spec["seed"])
    tokenizer: Any = AutoTokenizer.from_pretrained(spec["encoder"])
    train, test = read_rows(Path(spec["train"])), read_rows(Path(spec["test"]))
    features, test_features = (_features(spec, tokenizer, rows) for rows in (train, test))
    counted = _Counted(_collator(spec, tokenizer))
    trainer: Any = Trainer(
        model=_model(spec),
        args=_arguments(spec),
        train_dataset=_columns(features),
        data_collator=counted,
    )
    began = time.perf_counter()
    trainer.train()
    train_s = time.perf_counter() - began
    tokens, places = counted.tokens, counted.places
    score, loss = _scored(spec, trainer, test, test_features)
    return {
        "score": score,
        "loss": loss,
        "steps": trainer.state.global_step,
        "tokens": tokens,
        "useful": tokens / places,
        "train_s": train_s,
    }


def _model(spec: Mapping[str, Any]) -> Any:
    import transformers

    names = {
        "agnews": "AutoModelForSequenceClassification",
        "pair": "AutoModelForSequenceClassification",
        "tag": "AutoModelForTokenClassification",
        "qa": "AutoModelForQuestionAnswering",
    }
    given = {"num_labels": len(spec["labels"])} if spec["labels"] else {}
    kind: Any = getattr(transformers, names[spec["task"]])
    model = kind.from_pretrained(spec["encoder"], attn_implementation="sdpa", **given)
    return _with_lora(model) if spec["lora"] else model


def _with_lora(model: Any) -> Any:
    """What ours trains: matrices beside every one of the layers, the head, a pooler."""
    import peft

    heads = ["classifier", "qa_outputs", "pooler"]
    inside = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and ".layer." in name
    ]
    there = [h for h in heads if any(n.split(".")[-1] == h for n, _ in model.named_modules())]
    config = peft.LoraConfig(
        r=8, lora_alpha=16, lora_dropout=0.0, target_modules=inside, modules_to_save=there
    )
    return peft.get_peft_model(model, config)


def _arguments(spec: Mapping[str, Any]) -> Any:
    from transformers import TrainingArguments

    return TrainingArguments(
        output_dir=spec["output"],
        num_train_epochs=1,
        per_device_train_batch_size=spec["batch"],
        per_device_eval_batch_size=spec["batch"],
        learning_rate=spec["learning_rate"],
        lr_scheduler_type="linear",
        warmup_steps=0.1,  # below 1: a share
        weight_decay=0.01,
        max_grad_norm=1.0,
        bf16=spec["precision"] == "autocast",
        seed=spec["seed"],
        data_seed=spec["seed"],
        train_sampling_strategy=spec["sampling"],
        use_cpu=True,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        logging_steps=50,
        label_names=["start_positions", "end_positions"] if spec["task"] == "qa" else ["labels"],
    )


def _collator(spec: Mapping[str, Any], tokenizer: Any) -> Any:
    from transformers import DataCollatorForTokenClassification, DataCollatorWithPadding

    kind: Any = (
        DataCollatorForTokenClassification if spec["task"] == "tag" else DataCollatorWithPadding
    )
    return kind(tokenizer)


def _columns(features: Features) -> Features:
    """What the model takes; the rest is for scores."""
    return [{k: v for k, v in f.items() if not k.startswith("_")} for f in features]


def _features(spec: Mapping[str, Any], tokenizer: Any, rows: Rows) -> Features:
    cut: dict[str, Any] = {"truncation": True, "max_length": spec["row_tokens"]}
    match spec["task"]:
        case "tag":
            found = tokenizer([r["tokens"] for r in rows], is_split_into_words=True, **cut)
            numbers = {name: number for number, name in enumerate(spec["labels"])}
            return [
                _plain(found, i) | {"labels": _on_first(found.word_ids(i), row["tags"], numbers)}
                for i, row in enumerate(rows)
            ]
        case "qa":
            return _windows(spec, tokenizer, rows)
        case _:
            pairs = [r["text_pair"] for r in rows] if "text_pair" in rows[0] else None
            found = tokenizer([r["text"] for r in rows], pairs, **cut)
            return [
                _plain(found, i) | {"labels": spec["labels"].index(row["label"])}
                for i, row in enumerate(rows)
            ]


def _plain(found: Any, number: int) -> dict[str, Any]:
    return {k: v[number] for k, v in found.items() if k in _TAKEN}


_TAKEN = ("input_ids", "attention_mask", "token_type_ids")


def _on_first(words: list[int | None], tags: list[str], numbers: Mapping[str, int]) -> list[int]:
    labels, last = [], None
    for word in words:
        labels.append(-100 if word is None or word == last else numbers[tags[word]])
        last = word
    return labels


def _windows(spec: Mapping[str, Any], tokenizer: Any, rows: Rows) -> Features:
    found = tokenizer(
        [r["question"] for r in rows],
        [r["context"] for r in rows],
        truncation="only_second",
        max_length=spec["row_tokens"],
        stride=spec["stride"],
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    made = []
    for number, row in enumerate(found["overflow_to_sample_mapping"]):
        inside = [s == 1 for s in found.sequence_ids(number)]
        offsets = found["offset_mapping"][number]
        answer = rows[row]["answers"]
        begin = answer["answer_start"][0]
        end = begin + len(answer["text"][0])
        context = [i for i, yes in enumerate(inside) if yes]
        first, last = context[0], context[-1]
        start_at = end_at = 0
        if offsets[first][0] <= begin and offsets[last][1] >= end:
            start_at = max(i for i in context if offsets[i][0] <= begin)
            end_at = min(i for i in context if offsets[i][1] >= end)
        made.append(
            _plain(found, number)
            | {"start_positions": start_at, "end_positions": end_at, "_row": row}
            | {"_offsets": [o if yes else None for o, yes in zip(offsets, inside, strict=True)]}
        )
    return made


def _scored(
    spec: Mapping[str, Any], trainer: Any, rows: Rows, features: Features
) -> tuple[float, float]:
    found = trainer.predict(_columns(features))
    loss = float(found.metrics["test_loss"])
    match spec["task"]:
        case "tag":
            return _entities(spec, found.predictions.argmax(-1), found.label_ids), loss
        case "qa":
            return _answers(found.predictions, rows, features), loss
        case _:
            return float((found.predictions.argmax(-1) == found.label_ids).mean()), loss


def _entities(spec: Mapping[str, Any], chosen: Any, labels: Any) -> float:
    names = spec["labels"]
    metric = EntityF1(entity_types(names, "bio"), scheme="bio")
    sums = np.zeros(metric.size)
    for chosen_T, labels_T in zip(chosen, labels, strict=True):
        counts = labels_T != -100
        given = ([names[i] for i in x[counts].tolist()] for x in (chosen_T, labels_T))
        sums += metric.sums_of(*given)
    return metric.value(sums)["entity_f1"]


def _answers(predictions: Any, rows: Rows, features: Features) -> float:
    """run_qa's postprocessing: the best of the 20 best starts and ends of every window."""
    best = dict.fromkeys(range(len(rows)), (-np.inf, ""))
    for starts, ends, feature in zip(*predictions, features, strict=True):
        offsets, row = feature["_offsets"], feature["_row"]
        for a in np.argsort(starts)[: -_BEST - 1 : -1].tolist():
            for b in np.argsort(ends)[: -_BEST - 1 : -1].tolist():
                if max(a, b) >= len(offsets) or offsets[a] is None or offsets[b] is None:
                    continue
                if a <= b < a + _LONGEST_ANSWER and starts[a] + ends[b] > best[row][0]:
                    text = rows[row]["context"][offsets[a][0] : offsets[b][1]]
                    best[row] = (float(starts[a] + ends[b]), text)
    squad = Squad("1.1")
    sums = np.zeros(squad.size)
    for number, row in enumerate(rows):
        sums += squad.sums_of(best[number][1], row["answers"]["text"])
    return squad.value(sums)["f1"]


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(main(json.loads(Path(sys.argv[1]).read_text()))))
