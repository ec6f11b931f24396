"""Learning from random weights beside Hugging Face's Trainer: scores at equal text.

    python -m benchmarks.scratch translate pairs chat
    python -m benchmarks.scratch translate --share 0.25

Arms: `ours` is `longhaul train` on packed rows, one rank, and `longhaul export`; `hf` the Trainer
with its padding collators. The same examples as often, as many a step, the same shape of model,
tokenizer and recipe, one thread, one process at a time. Both are scored by transformers' classes on
the same held-out examples, after each third. Data: a folder with multi30k, wikitext-2 and gsm8k
(--data or $LONGHAUL_TEST_DATA). What was done is kept in --folder and not done again.

Exit code 1: ours is not better than the baseline (a source copied or the commonest answer; tokens
told by how frequent they are), did not get better with each third, or a command took longer than
a quarter of an hour of CPU time.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.finetune_ours import timed_command
from benchmarks.finetune_tasks import data_folder, read_rows
from benchmarks.paired import machine, write_result
from benchmarks.scratch_tasks import TASKS, ScratchTask, write_task
from benchmarks.step_arms import check_peers
from launch.compose import compose
from trainer.config.explain import validate
from trainer.config.sections.example_data import ExamplesSection
from trainer.data.prepare_examples import prepare_examples
from trainer.records.example_store import read_example_manifest
from trainer.records.metrics import read_metrics
from trainer.records.run_files import RunFiles

PARTS, MOST_CPU_S = 3, 900.0
Outcome = dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """`share`: of the task's whole budget."""

    task: ScratchTask
    train: Path
    test: Path
    tokenizer: Path
    folder: Path
    seed: int
    share: float

    @property
    def name(self) -> str:
        recipe = hashlib.sha256(repr(self.task).encode()).hexdigest()[:8]
        return f"{self.task.name}-{recipe}-{self.share:g}-{self.seed}"

    def steps(self, rows: int, batch: int) -> int:
        """A multiple of PARTS, which each end with a folder to score."""
        return max(1, round(self.task.epochs * self.share * rows / batch / PARTS)) * PARTS


def main(argv: Sequence[str] | None = None) -> int:
    given = _arguments(argv)
    check_peers()
    kept = True
    results: dict[str, list[dict[str, Outcome]]] = {}
    for name in given.tasks:
        task, folder = TASKS[name], given.folder / name
        files = write_task(task, given.data, folder)
        asked = [Asked(task, *files, folder, seed, given.share) for seed in given.seeds]
        results[name] = [_found(one) for one in asked]
        kept &= _judged(task, results[name])
    if given.json:
        write_result(given.json, {"machine": machine(), "share": given.share, "results": results})
    return 0 if kept else 1


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "scratch", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tasks", nargs="*", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1])
    parser.add_argument("--share", type=float, default=1.0, help="of the whole budget")
    parser.add_argument("--data", type=Path, default=data_folder())
    parser.add_argument("--folder", type=Path, default=Path("runs/scratch"))
    parser.add_argument("--json", type=Path, default=None)
    given = parser.parse_args(argv)
    given.folder = given.folder.resolve()
    if not (given.data / "multi30k").is_dir():
        parser.error(f"{given.data} has no multi30k; give --data FOLDER")
    return given


def _found(asked: Asked) -> dict[str, Outcome]:
    """By arm, and the baseline."""
    found = {}
    for arm, act in (("ours", _ours), ("hf", _theirs)):  # theirs has the shape that ours exported
        done = asked.folder / f"{asked.name}-{arm}.json"
        if not done.exists():
            outcome = act(asked)
            done.write_text(json.dumps(outcome))
        found[arm] = Outcome(json.loads(done.read_text()))
        _say(asked, arm, found[arm])
    return found


def _ours(asked: Asked) -> Outcome:
    settings = _settings(asked)
    rows, row_places, examples = _prepared(asked, settings)
    batch = max(1, round(rows * asked.task.batch / examples))
    steps = asked.steps(rows, batch)
    settings += [
        f"steps.total={steps}",
        f"steps.save_every={steps // PARTS}",
        f"batch.global_batch_size={batch}",
        f"batch.micro_batch_size={batch}",
        f"schedule.warmup_steps={max(1, steps // 10)}",
    ]
    run = RunFiles(asked.folder / "runs" / asked.name)
    exports = [asked.folder / "ours" / f"{asked.name}-{n}" for n in range(1, PARTS + 1)]
    for left in (run.root, *exports):  # half done
        shutil.rmtree(left, ignore_errors=True)
    us = [sys.executable, "-m", "launch"]
    log = asked.folder / f"{asked.name}-ours.log"
    wall, cpu = timed_command([*us, "train", *settings, f"run.name={asked.name}"], log=log)
    for number, folder in enumerate(exports, start=1):
        step = str(number * steps // PARTS)
        command = [*us, "export", str(run.root), "--step", step, "--to", str(folder)]
        log = asked.folder / f"{folder.name}-export.log"
        timed_command([*command, "--rows", "0"], log=log)
    lines = read_metrics(run.metrics)
    tokens = sum(line["tokens"] for line in lines)
    return {
        "steps": len(lines),
        "examples": round(len(lines) * batch * examples / rows),
        "tokens": tokens,
        "useful": tokens / (row_places * batch * len(lines)),
        "train_s": sum(line["step_s"] for line in lines),
        "wall_s": wall,
        "cpu_s": cpu,
        "scores": _scores(asked, exports),
    }


def _theirs(asked: Asked) -> Outcome:
    settings = _settings(asked)
    _, _, examples = _prepared(asked, settings)
    steps = asked.steps(examples, asked.task.batch)
    output = asked.folder / "hf" / asked.name
    shutil.rmtree(output, ignore_errors=True)
    spec = {
        "config": str(asked.folder / "ours" / f"{asked.name}-{PARTS}"),
        "train": str(asked.train),
        "output": str(output),
        "steps": steps,
        "batch": asked.task.batch,
        "warmup_steps": max(1, steps // 10),
        "save_every": steps // PARTS,
        "learning_rate": asked.task.learning_rate,
        "seed": asked.seed,
    }
    found, wall, cpu = _peer("train", asked, spec)
    folders = [output / f"checkpoint-{n * steps // PARTS}" for n in range(1, PARTS + 1)]
    took: Outcome = {"steps": steps, "examples": steps * asked.task.batch} | found
    return took | {"wall_s": wall, "cpu_s": cpu, "scores": _scores(asked, folders)}


def _scores(asked: Asked, folders: Sequence[Path]) -> list[dict[str, float]]:
    """After each part, and at last the baseline's."""
    spec = {
        "train": str(asked.train),
        "test": str(asked.test),
        "held_out": asked.task.held_out,
        "folders": [str(folder) for folder in folders],
    }
    found, _, _ = _peer("score", asked, spec)
    scores: list[dict[str, float]] = found
    return scores


def _peer(act: str, asked: Asked, spec: Mapping[str, Any]) -> tuple[Any, float, float]:
    files = [asked.folder / f"{asked.name}-{act}.{what}.json" for what in ("spec", "result")]
    shared = {"task": asked.task.name, "row_tokens": asked.task.row_tokens}
    files[0].write_text(json.dumps({**shared, **spec, "tokenizer": str(asked.tokenizer)}))
    command = [sys.executable, "-m", "benchmarks.scratch_hf", act, *map(str, files)]
    wall, cpu = timed_command(command, log=asked.folder / f"{asked.name}-hf-{act}.log")
    return json.loads(files[1].read_text()), wall, cpu


def _settings(asked: Asked) -> list[str]:
    task, paths = asked.task, f"[{json.dumps(str(asked.train))}]"
    examples = task.data == "examples"
    return [
        *task.overrides,
        f"data={task.data}",
        f"data.sources.{'examples' if examples else 'files'}.paths={paths}",
        *(["data.audit.near_copies=false"] if examples else []),
        "data/tokenizer=pretrained",
        f"data.tokenizer.path={asked.tokenizer}",
        f"data.store_root={asked.folder / 'stores'}",
        f"data.sequence_length={task.row_tokens}",
        "data.held_out_fraction=0",
        "data.num_workers=1",
        "schedule=linear",
        f"optimizer.learning_rate={task.learning_rate}",
        "optimizer.beta2=0.999",  # these three as HF Trainer has them
        "optimizer.weight_decay=0.01",
        "optimizer.max_grad_norm=1.0",
        "engine=plain",
        "precision=autocast",
        "evals=none",
        "checkpoint=keep_all",
        "resources.ranks_per_node=1",
        "resources.threads_per_rank=1",
        "resources.device=cpu",
        f"run.root={asked.folder / 'runs'}",
        f"run.seed={asked.seed}",
        "steps.log_every=1",
        "steps.eval_every=0",
        "resume=never",
    ]


def _prepared(asked: Asked, settings: Sequence[str]) -> tuple[int, int, int]:
    """(rows, places of a row, examples), the store made if it is not there."""
    config = validate(compose([*settings, "steps.total=1000"]).values)
    data: Any = config.data
    if not isinstance(data, ExamplesSection):
        rows = _pairs(asked)
        return rows, asked.task.row_tokens, rows
    (store,) = prepare_examples(config, data, log=lambda line: None)
    manifest = read_example_manifest(Path(store.path))
    places = manifest.row_tokens * (2 if asked.task.name == "translate" else 1)
    return manifest.num_rows("train"), places, len(read_rows(asked.train))


def _pairs(asked: Asked) -> int:
    from transformers import AutoTokenizer

    from benchmarks.scratch_tasks import pair_rows

    tokenizer: Any = AutoTokenizer.from_pretrained(asked.tokenizer)
    texts = [row["text"] for row in read_rows(asked.train)]
    documents = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return len(pair_rows(documents, row_tokens=asked.task.row_tokens, seed=0))


def _say(asked: Asked, arm: str, one: Outcome) -> None:
    parts = [_text(scores) for scores in one["scores"]]
    print(
        f"{asked.task.name} {arm} seed {asked.seed}: {'; '.join(parts[:-1])} (baseline {parts[-1]})"
        f"\n  {one['examples']:,} examples, {one['tokens']:,} tokens of text in {one['steps']} "
        f"steps, {one['useful']:.1%} useful; {one['wall_s']:.0f} s, {one['cpu_s']:.0f} s of CPU",
        flush=True,
    )


def _text(scores: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in scores.items())


def _judged(task: ScratchTask, found: Sequence[Mapping[str, Outcome]]) -> bool:
    kept, sign = True, 1 if task.higher else -1
    for one in found:
        *parts, baseline = [sign * scores[task.score] for scores in one["ours"]["scores"]]
        theirs = sign * one["hf"]["scores"][PARTS - 1][task.score]
        rising = all(a < b for a, b in itertools.pairwise(parts))
        kept &= _promise(f"{task.name}: better than the baseline", parts[-1] > baseline)
        kept &= _promise(f"{task.name}: better with each third", rising)
        slow = max(arm["cpu_s"] for arm in one.values())
        kept &= _promise(f"{task.name}: {slow:.0f} s of CPU", slow < MOST_CPU_S)
        print(f"{task.name}: {task.score} better than the peer's by {parts[-1] - theirs:.4g}")
    return kept


def _promise(what: str, kept: bool) -> bool:
    print(f"{what}: {'kept' if kept else 'NOT KEPT'}")
    return kept


if __name__ == "__main__":
    raise SystemExit(main())
