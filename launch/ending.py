"""The last lines a person reads: how it ended, against what, and what to do next."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launch.node.failure import read_failure
from launch.outcome import where_it_goes_on
from launch.run.attempts import read_lines_of
from launch.run.kept_states import goes_on
from launch.run.run_folder import attempts, typed_name
from launch.run.status import last_metrics, newest_plan
from trainer.errors import DataError, Exit
from trainer.records.attempt import read_done
from trainer.records.json_file import read_json
from trainer.records.metrics import read_metrics
from trainer.records.prepared import is_examples
from trainer.records.run_files import AttemptFiles, RunFiles
from trainer.records.sample_prompt import typed_prompt
from trainer.records.token_store import read_manifest


def say_finished(run: RunFiles, step: int) -> None:
    print(f"{run.name} is finished at step {step}")
    print(f"  to go on: longhaul resume {typed_name(run)} steps.total={2 * step}")
    print("\n".join(_next(run)))


def say_ending(run: RunFiles, files: AttemptFiles, code: int) -> None:
    """`files`: the attempt that was started; others may have followed it."""
    files = attempts(run)[-1] if attempts(run) else files
    if code == Exit.DONE:
        print("\n".join([*_result(run, files), *_sample(run, files), *_next(run)]))
        return
    why = next((x["why"] for x in read_lines_of(run) if x["attempt"] == files.number), "")
    error = read_failure(files)
    judged = error is not None and error.exit_code != code  # not what the rank itself asked for
    if code in (Exit.SAVED, Exit.INTERRUPTED) or judged:
        print(f"\n{run.name}: {why}")
    failed = code == Exit.FAILED  # else the disk has all that there is
    place = f"goes on {goes_on(run, files) if failed else where_it_goes_on(run)}"
    if code in (Exit.SAVED, Exit.FAILED, Exit.INTERRUPTED):
        print(f"  longhaul resume {typed_name(run)}   {place}")
    if code not in (Exit.SAVED, Exit.INTERRUPTED):
        print(f"  longhaul logs {typed_name(run)} --why   the first failure in full")


def _result(run: RunFiles, files: AttemptFiles) -> list[str]:
    done = read_done(files.done)
    if done is None:  # exit code 0 comes from done.json
        return []
    loss = done.loss if done.loss is not None else last_metrics(run.metrics).get("loss")
    shown = f"loss {loss:.4f}" if loss is not None else "no loss was measured"
    entropy = _unigram_entropy(files)
    against = "" if entropy is None else f"; unigram entropy of the data {entropy:.4f}"
    lines = ["", f"{run.name}: finished at step {done.step}, {shown}{against}"]
    if not done.said:
        return lines
    taken = "" if done.best_step is None else f"; export and evaluate take step {done.best_step}"
    return [*lines, f"  {done.said}{taken}"]


def _unigram_entropy(files: AttemptFiles) -> float | None:
    """Nats a token, the sources weighted as in training: what a model that knows only how often
    each token occurs would reach."""
    try:
        stores: list[dict[str, Any]] = read_json(files.plan)["stores"]
        known = [
            (float(s["weight"]), read_manifest(Path(s["path"])).unigram_entropy_nats)
            for s in stores
        ]
    except (OSError, ValueError, KeyError, DataError):
        return None
    total = sum(weight for weight, _ in known)
    return sum(weight * nats for weight, nats in known) / total if total else None


def _sample(run: RunFiles, files: AttemptFiles) -> list[str]:
    """The newest text the model wrote, unless the console has shown it a moment ago."""
    if read_json(files.plan)["config"]["observers"]["console"]["enabled"]:
        return []
    for line in reversed(read_metrics(run.metrics, "eval")):
        for prompt, text in line.get("samples", [])[:1]:
            return ["", "a sample:", *(f"  | {row}" for row in f"{prompt}{text}".splitlines())]
    return []


def _next(run: RunFiles) -> list[str]:
    name, plan = typed_name(run), newest_plan(run)
    config = plan.get("config", {})
    speaks = f"  longhaul generate {name} --prompt {typed_prompt(config)}"
    return [
        "",
        "next",
        *([speaks] if _goes_on_with_a_text(config) else []),
        *([f"  longhaul evaluate {name}"] if _has_held_out(plan) else []),
        f"  longhaul export {name}",
        f"  longhaul status {name}",
    ]


def _goes_on_with_a_text(config: Mapping[str, Any]) -> bool:
    """Whether `generate` can: a model of masked tokens fills gaps, and one of examples answers."""
    gaps = ("masked_lm", "masked_lm_nsp", "span_denoising")
    kind = config.get("task", {}).get("kind")
    return kind not in gaps and not is_examples(config.get("data", {}))


def _has_held_out(plan: Mapping[str, Any]) -> bool:
    """Whether `evaluate` has a row to score: packed, a row takes its tokens and the one after."""
    data = plan.get("config", {}).get("data", {})
    if is_examples(data):  # each is whole, however short
        return any(store.get("held_out_tokens", 0) for store in plan.get("stores", ()))
    needed = data.get("sequence_length", 0) + 1 if data.get("packing") else 2
    return any(store.get("held_out_tokens", 0) >= needed for store in plan.get("stores", ()))
