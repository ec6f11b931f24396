"""Our arm of a fine-tune: `longhaul train`, as a user starts it, on rows packed best-fit."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.finetune_tasks import FinetuneTask
from launch.compose import compose
from trainer.config.explain import validate
from trainer.config.sections.example_data import ExamplesSection
from trainer.data.prepare_examples import prepare_examples
from trainer.records.example_store import read_example_manifest
from trainer.records.metrics import read_metrics
from trainer.records.run_files import RunFiles


@dataclass(frozen=True)
class Arm:
    """What an arm is asked for. `folder`: where it may write."""

    task: FinetuneTask
    train: Path
    test: Path
    encoder: Path
    folder: Path
    seed: int
    lora: bool
    precision: str  # autocast | fp32

    @property
    def how(self) -> str:
        return f"{'lora' if self.lora else 'full'}-{self.precision}"


@dataclass(frozen=True)
class Outcome:
    """Units: seconds, tokens. `useful`: tokens that are text, of all that the model computed."""

    score: float
    loss: float  # on held-out examples
    steps: int
    tokens: int  # text that was trained on
    useful: float
    train_s: float  # first step to last
    wall_s: float  # the whole command
    cpu_s: float  # of the whole command, which neighbours hardly stretch

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.train_s

    @property
    def tokens_per_cpu_second(self) -> float:
        return self.tokens / self.cpu_s


def run_ours(arm: Arm) -> Outcome:
    """Prepare, train an epoch (never more), score all held-out examples at the end."""
    settings = _settings(arm)
    rows, row_tokens, held_out = _prepared(arm, settings)
    batch = max(1, round(rows * arm.task.batch / arm.task.train))
    steps = rows // batch
    settings += [
        f"steps.total={steps}",
        f"batch.global_batch_size={batch}",
        f"batch.micro_batch_size={batch}",
        f"schedule.warmup_steps={max(1, steps // 10)}",
        f"evals.held_out_rows={held_out}",
    ]
    name = f"{arm.task.name}-{arm.how}-{arm.seed}"
    shutil.rmtree(arm.folder / "runs" / name, ignore_errors=True)  # half done, or another recipe's
    wall, cpu = timed_command(
        [sys.executable, "-m", "launch", "train", *settings, f"run.name={name}"],
        log=arm.folder / f"{name}.log",
    )
    run = RunFiles(arm.folder / "runs" / name)
    lines = read_metrics(run.metrics)
    scored = read_metrics(run.metrics, "eval")[-1]
    tokens = sum(line["tokens"] for line in lines)
    return Outcome(
        score=scored[f"eval_{arm.task.score}"],
        loss=scored["eval_loss"],
        steps=len(lines),
        tokens=tokens,
        useful=tokens / (row_tokens * batch * len(lines)),
        train_s=sum(line["step_s"] for line in lines),
        wall_s=wall,
        cpu_s=cpu,
    )


def timed_command(command: Sequence[str], *, log: Path) -> tuple[float, float]:
    """(wall, CPU) seconds of a command and all that it starts. Raises: SystemExit if it fails."""
    one_thread = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    began, before = time.perf_counter(), _children_s()
    with log.open("w") as out:
        done = subprocess.run(
            command, stdout=out, stderr=subprocess.STDOUT, env=os.environ | one_thread
        )
    if done.returncode:
        tail = "\n".join(log.read_text().splitlines()[-15:])
        raise SystemExit(f"{' '.join(command[:4])} ... failed, see {log}:\n{tail}")
    return time.perf_counter() - began, _children_s() - before


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _settings(arm: Arm) -> list[str]:
    task = arm.task
    rate = task.lora_rate if arm.lora else task.learning_rate
    held_out = f"data.held_out={{examples: {{paths: [{json.dumps(str(arm.test))}]}}}}"
    lora = ["model/adapter=lora", "model.adapter.rank=8", "model.adapter.alpha=16"]
    labels = (
        [f"data.labels=[{','.join(json.dumps(x) for x in task.labels)}]"] if task.labels else []
    )
    return [
        "model=hf_folder",
        f"model.path={arm.encoder}",
        *(lora if arm.lora else []),
        *task.overrides,
        "data=examples",
        f"data.sources.examples.paths=[{json.dumps(str(arm.train))}]",
        held_out,
        *labels,
        f"data.tokenizer.path={arm.encoder}",
        f"data.store_root={arm.folder / 'stores'}",
        f"data.sequence_length={task.row_tokens}",
        "data.num_workers=1",
        "data.audit.near_copies=false",
        "schedule=linear",
        f"optimizer.learning_rate={rate}",
        "optimizer.beta2=0.999",  # these three as HF Trainer has them
        "optimizer.weight_decay=0.01",
        "optimizer.max_grad_norm=1.0",
        "engine=plain",
        f"precision={arm.precision}",
        "resources.ranks_per_node=1",
        "resources.threads_per_rank=1",
        "resources.device=cpu",
        f"run.root={arm.folder / 'runs'}",
        f"run.seed={arm.seed}",
        "steps.log_every=1",
        "steps.save_every=0",
        "steps.eval_every=0",
        "resume=never",
    ]


def _prepared(arm: Arm, settings: Sequence[str]) -> tuple[int, int, int]:
    """(training rows, tokens of a row, held-out rows), the store made if it is not there."""
    config = validate(compose([*settings, "steps.total=1000"]).values)
    data: Any = config.data
    assert isinstance(data, ExamplesSection)
    (store,) = prepare_examples(config, data, log=lambda line: None)
    manifest = read_example_manifest(Path(store.path))
    return manifest.num_rows("train"), manifest.row_tokens, manifest.num_rows("held_out")
