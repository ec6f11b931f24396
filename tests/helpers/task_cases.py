"""Every task on examples, small enough to be trained in a test: one entry of CASES each."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.helpers.configs import config
from tests.helpers.tokenizer_folders import bert_folder, gpt_folder, t5_folder
from trainer.data.prepare import prepare
from trainer.plan import RunPlan
from trainer.planning import make_plan
from trainer.records.prepared import prepared_vocab_size

Rows = Callable[[random.Random, int], dict[str, Any]]
WORDS = "the engine found a fault in its own house and Peter Blackburn works for Acme in Berlin"
_WORDS = WORDS.split()

# SGD, so that a loss of the wrong scale shows; no dropout, so that cutting a step up differently
# is all that differs; 5 rows, which no world and no accumulation divides.
_SIZE = (
    "model.hidden_size=32",
    "model.intermediate_size=48",
    "model.num_hidden_layers=2",
    "model.num_attention_heads=4",
)
ENCODER = ("model=encoder_debug", *_SIZE, "model.max_position_embeddings=64")
DECODER = ("model=llama_debug", *_SIZE, "model.num_key_value_heads=2", "model.head_dim=8")
TWO_STACKS = (
    "model=encoder_decoder_debug",
    *_SIZE,
    "model.head_dim=8",
    "model.num_decoder_layers=2",
)
TINY = (
    "data.sequence_length=48",
    "data.held_out_fraction=0.2",
    "batch.global_batch_size=5",
    "batch.micro_batch_size=5",
    "optimizer=sgd",
    "optimizer.learning_rate=0.1",
    "optimizer.max_grad_norm=0",
    "schedule=constant",
    "schedule.warmup_steps=0",
    "precision=fp32",
    "engine=zero2",
    "steps.total=4",
    "steps.save_every=0",
    "steps.eval_every=0",
    "evals.held_out_rows=7",
    "resources.device=cpu",
    "resources.collective_timeout_s=60",
    "watch.enabled=false",
    "observers.peak_tflops=0.1",
    "restart.standby=false",
)


@dataclass(frozen=True)
class Case:
    """`row`: (random, number) -> one example as a line of JSON has it; of `text`, a document."""

    overrides: tuple[str, ...]
    row: Rows
    model: tuple[str, ...] = ENCODER
    tokenizer: Callable[[Path], Path] = bert_folder
    text: bool = False


def words(draw: random.Random, most: int) -> str:
    return " ".join(draw.choice(_WORDS) for _ in range(draw.randint(1, most)))


def _single(draw: random.Random, number: int) -> dict[str, Any]:
    return {"text": f"{words(draw, 9)} {number}", "label": draw.choice(["good", "bad", "odd"])}


def _pair(draw: random.Random, number: int) -> dict[str, Any]:
    return _single(draw, number) | {"text_pair": words(draw, 6)}


def _multi(draw: random.Random, number: int) -> dict[str, Any]:
    labels = [name for name in ("red", "green", "blue") if draw.random() < 0.5]
    return {"text": f"{words(draw, 9)} {number}", "labels": labels}


def _number(draw: random.Random, number: int) -> dict[str, Any]:
    return {"text": f"{words(draw, 9)} {number}", "label": round(draw.uniform(-2, 2), 3)}


_TAGS = {"Peter": "B-PER", "Blackburn": "I-PER", "Acme": "B-ORG", "Berlin": "B-LOC"}


def _tagged(draw: random.Random, number: int) -> dict[str, Any]:
    tokens = f"{words(draw, 9)} Peter Blackburn {words(draw, 9)} {number}".split()
    tags = [_TAGS.get(token, "O") for token in tokens]
    for at, (token, before) in enumerate(zip(tokens, [None, *tokens], strict=False)):
        if token == "Blackburn" and before != "Peter":
            tags[at] = "B-PER"
    return {"tokens": tokens, "tags": tags}


def _related(draw: random.Random, number: int) -> dict[str, Any]:
    text = f"{words(draw, 4)} <e1>house</e1> {words(draw, 4)} <e2>engine</e2> {number}"
    label = draw.choice(["Whole(e1,e2)", "Whole(e2,e1)", "Cause(e1,e2)", "Other"])
    return {"text": text, "label": label}


def _asked(draw: random.Random, number: int) -> dict[str, Any]:
    """Contexts of one to several windows; one question in four has no answer."""
    said = [draw.choice(_WORDS) for _ in range(draw.randint(4, 40))]
    first = draw.randrange(len(said))
    text = " ".join(said[first : first + 2])
    start = len(" ".join([*said[:first], ""]))
    found = {"text": [text], "answer_start": [start]} if number % 4 else _NO_ANSWER
    return {
        "question": f"{words(draw, 3)} {number}?",
        "context": " ".join(said),
        "answers": found,
    }


_NO_ANSWER: dict[str, list[Any]] = {"text": [], "answer_start": []}


def _chat(draw: random.Random, number: int) -> dict[str, Any]:
    turns = [("user", f"{words(draw, 3)} {number}"), ("assistant", words(draw, 3))]
    messages: list[dict[str, Any]] = [{"role": role, "content": text} for role, text in turns]
    if number % 3:  # others count whole
        messages[1]["weight"] = round(draw.uniform(0.1, 2), 2)
    return {"messages": messages}


def _prompted(draw: random.Random, number: int) -> dict[str, Any]:
    return {"source": f"{words(draw, 4)} {number}", "target": words(draw, 4)}


def _preferred(draw: random.Random, number: int) -> dict[str, Any]:
    one, other = words(draw, 3), words(draw, 3)
    said = {"chosen": f" yes {one}", "rejected": f" no {other}"}
    if draw.random() < 0.3:  # nobody is right about all of them
        said = {"chosen": said["rejected"], "rejected": said["chosen"]}
    return {"prompt": f"{words(draw, 2)} {number}"} | said


def _document(draw: random.Random, number: int) -> dict[str, Any]:
    return {"text": f"{words(draw, 60)} {number}"}


CASES: dict[str, Case] = {
    "classify": Case(("task=classify",), _single),
    "classify_pair": Case(("task=classify",), _pair),
    "classify_multi": Case(("task=classify", "task.answers=multi"), _multi),
    "regression": Case(
        # values that differ between texts, or their correlation would be one of rounding errors
        (
            "task=classify",
            "task.answers=regression",
            "model.initializer_range=0.3",
            "optimizer.learning_rate=0.002",
        ),
        _number,
    ),
    "tag": Case(("task=tag", "task.scheme=bioes"), _tagged),
    "relations": Case(("task=relations", "task.none=Other"), _related),
    "extract_qa": Case(
        (
            "task=extract_qa",
            "task.stride=4",
            "evals.held_out_rows=100",
            "task.no_answer_threshold=100",  # answers, not "none", from the first step on
        ),
        _asked,
    ),
    "chat": Case(
        ("task=chat", "task.template=plain", "task.weighted=true"), _chat, DECODER, gpt_folder
    ),
    "dpo": Case(
        ("task=preference", "task.label_smoothing=0.1", "data.sequence_length=96"),
        _preferred,
        DECODER,
        gpt_folder,
    ),
    "orpo": Case(
        ("task=preference", "task.loss=orpo", "data.sequence_length=96"),
        _preferred,
        DECODER,
        gpt_folder,
    ),
    "reward": Case(("task=reward", "data.sequence_length=96"), _preferred, DECODER, gpt_folder),
    "seq2seq": Case(
        ("task=seq2seq", "task.target_tokens=24"),
        _prompted,
        DECODER,
        gpt_folder,
    ),
    "prefix_lm": Case(
        ("task=seq2seq", "task.prefix_lm=true", "task.target_tokens=24"),
        _prompted,
        DECODER,
        gpt_folder,
    ),
    "seq2seq_t5": Case(
        (
            "task=seq2seq",
            "task.prompt='{source}'",
            "task.target_tokens=24",
            "task.label_smoothing=0.1",
        ),
        _prompted,
        TWO_STACKS,
        t5_folder,
    ),
    "masked_lm": Case(("task=masked_lm",), _document, text=True),
    "masked_lm_nsp": Case(("task=masked_lm_nsp", "task.unit=word"), _document, text=True),
    "span_denoising": Case(("task=span_denoising",), _document, TWO_STACKS, t5_folder, text=True),
}


def written(folder: Path, row: Rows, *, count: int = 40, seed: int = 4) -> Path:
    """`count` examples, the same every time."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(seed)
    path = folder / "examples.jsonl"
    lines = [json.dumps(row(draw, number)) for number in range(count)]
    text = "\n".join(lines) + "\n"
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")  # a new time of change would mean a new store
    return path


def case_plan(
    folder: Path, name: str, overrides: Sequence[str] = (), *, count: int = 40
) -> RunPlan:
    """The plan of a run on one rank, its store prepared under `folder`."""
    case = CASES[name]
    path = written(folder / name, case.row, count=count)
    tokenizer = folder / case.tokenizer.__name__
    if not tokenizer.exists():  # training one again may give another
        case.tokenizer(tokenizer)
    source = "files" if case.text else "examples"
    wanted = config(
        *case.model,
        *(("data=jsonl", "data/tokenizer=pretrained") if case.text else ("data=examples",)),
        *TINY,
        *case.overrides,
        f"data.sources.{source}.paths=[{path}]",
        f"data.tokenizer.path={tokenizer}",
        f"data.store_root={folder / 'stores'}",
        f"run.root={folder / 'runs'}",
        f"run.name={name}",
        "resources.ranks_per_node=1",
        *overrides,
    )
    stores = prepare(wanted, log=_quiet)
    data = wanted.data.model_dump(mode="json")
    return make_plan(
        wanted,
        attempt=1,
        run_id=f"{name}-id",
        stores=stores,
        device="cpu",
        cores=1,
        vocab_size_of_tokenizer=prepared_vocab_size(Path(stores[0].path), data=data),
    )


def _quiet(line: str) -> None:
    """Progress of the preparation is not of interest."""
