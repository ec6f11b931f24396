"""`longhaul evaluate RUN --answers N`: what a model says to held-out examples, and scores of it."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from trainer.batch import ExampleBatch
from trainer.commands.rows import held_out_rows
from trainer.config.sections.tasks import ChatTask, Seq2SeqTask
from trainer.data.encodings.chat import ends_of_turns
from trainer.data.task_tokenizer import TaskTokenizer
from trainer.errors import Exit, Refused
from trainer.evals.asked import Asked, asked_of
from trainer.evals.generated import Decoding, answers, room_for, scores_named, values_of
from trainer.evals.metrics.base import Running
from trainer.evals.metrics.word_list import WordList, read_word_list
from trainer.export.trained import Trained
from trainer.plan import RunPlan

_SCORES = {"seq2seq": ("bleu", "chrf", "rouge"), "chat": ("exact_match", "rouge")}
_MAX_NEW_TOKENS = 256  # of a chat, where nothing says how long an answer may be
_SHOWN = 3


@dataclass(frozen=True)
class Wish:
    """What is to be answered, and how; checked before a model is loaded."""

    asked: Sequence[Asked]
    left_out: int  # their prompts leave no room for an answer
    tokenizer: TaskTokenizer
    decoding: Decoding
    scores: dict[str, Running]
    write: Path | None
    words: WordList | None = None


def wish_of(given: argparse.Namespace, plan: RunPlan) -> Wish | None:
    """None if no answer is asked for.

    Raises: Refused for a task without answers, a score there is not, or nothing held out.
    """
    if not given.answers:
        if given.words is not None:
            raise Refused("--words looks at answers: say how many, as in --answers 100")
        return None
    task = plan.config.task
    if not isinstance(task, ChatTask | Seq2SeqTask):
        raise Refused(f"--answers: task={task.kind} writes no answers; chat and seq2seq do")
    if given.answers < 0 or given.beams < 1 or (given.max_new_tokens or 1) < 1:
        raise Refused("--answers is at least 0, --beams and --max-new-tokens at least 1")
    if given.write and given.write.exists():
        raise Refused(f"--write {given.write}: the file exists; name a new one")
    names = given.scores.split(",") if given.scores else _SCORES[task.kind]
    scores = scores_named(names)
    words = None if given.words is None else read_word_list(given.words)
    if words is not None:
        scores["words"] = Running(words)
    tokenizer = TaskTokenizer.open(Path(plan.stores[0].path))
    if isinstance(task, ChatTask):
        ends = ends_of_turns(tokenizer)
        longest = given.max_new_tokens or _MAX_NEW_TOKENS
    else:
        ends = {tokenizer.special("eos_token")}
        longest = given.max_new_tokens or task.target_tokens
    decoding = Decoding(
        max_new_tokens=longest, beams=given.beams, ends=ends, padding_id=tokenizer.padding_id
    )
    rows = held_out_rows(plan, given.answers)  # an example a row at least
    examples = (batch for batch in rows if isinstance(batch, ExampleBatch))
    found = list(islice(asked_of(examples, decode=tokenizer.decode_plain), given.answers))
    if not found:
        raise Refused(f"run {plan.config.run.name} holds out no example that has an answer")
    return Wish(found, 0, tokenizer, decoding, scores, given.write, words)


def answer(wish: Wish, trained: Trained, model: Any, *, as_json: bool) -> Exit:
    """Generate, score, show, write. One line a question in the file, in the order of the rows."""
    started = time.perf_counter()
    wish = _with_room(wish, model)
    said: dict[int, str] = {}
    prompts = [one.prompt for one in wish.asked]
    for number, ids in answers(model, prompts, wish.decoding):
        said[number] = wish.tokenizer.decode_plain(ids).strip()
        _progress(len(said), len(prompts), quiet=as_json)
    for number, one in enumerate(wish.asked):
        for score in wish.scores.values():
            score.add(said[number], list(one.references))
    rows = [
        {
            "prompt": wish.tokenizer.decode(list(one.prompt)),
            "answer": said[number],
            "references": list(one.references),
            **_flagged(said[number], wish.words),
        }
        for number, one in enumerate(wish.asked)
    ]
    if wish.write:
        wish.write.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))
    result = {
        "step": trained.step,
        "answers": len(rows),
        "left_out": wish.left_out,
        "max_new_tokens": wish.decoding.max_new_tokens,
        **values_of(wish.scores),
    }
    if as_json:
        print(json.dumps(result))
    else:
        _show(result, rows, seconds=time.perf_counter() - started)
    return Exit.DONE


def _flagged(answer: str, words: WordList | None) -> dict[str, Any]:
    """What was hit, for somebody to read before the share is believed."""
    if words is None:
        return {}
    hits = {name: words.found(answer, name) for name, _ in words.categories}
    return {"flagged": {name: found for name, found in hits.items() if found}}


def _with_room(wish: Wish, model: Any) -> Wish:
    positions = getattr(model.hf.config, "max_position_embeddings", None)
    if positions is None:
        return wish
    kept = room_for(wish.asked, positions=positions, decoding=wish.decoding)
    if not kept:
        most = wish.decoding.max_new_tokens
        raise Refused(
            f"no prompt leaves room for {most} new tokens within the model's {positions} "
            "positions; give a smaller --max-new-tokens"
        )
    return replace(wish, asked=kept, left_out=len(wish.asked) - len(kept))


def _show(result: dict[str, Any], rows: Sequence[dict[str, Any]], *, seconds: float) -> None:
    for row in rows[:_SHOWN]:
        print(f"asked     {_line(row['prompt'])}")
        print(f"answered  {_line(row['answer'])}")
        print(f"expected  {_line(row['references'][0])}\n")
    print(f"step {result['step']}, {result['answers']:,} answers")
    for name, value in result.items():
        if isinstance(value, float):
            print(f"  {name:16} {value:.4f}")
    if "flagged" in result:
        print(
            "  flagged: spellings of the list alone; 0 says nothing about meaning (docs/metrics.md)"
        )
    if result["left_out"]:
        print(f"  {result['left_out']} left out: prompt and answer are longer than the model reads")
    print(f"  in {seconds:.1f} s")


def _line(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= 160 else f"...{flat[-157:]}"


def _progress(done: int, total: int, *, quiet: bool) -> None:
    if not quiet and sys.stderr.isatty():
        print(f"\r{done}/{total} answered", end="\n" if done == total else "", file=sys.stderr)
