"""Run folders small enough to be trained in a test, planned the way `longhaul train` plans them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tests.helpers.configs import config
from tests.helpers.data import tiny_text_corpus
from trainer.data.prepare import prepare
from trainer.plan import RunPlan, write_plan
from trainer.planning import make_plan
from trainer.records.run_files import RunFiles
from trainer.records.token_store import read_manifest

# Odd sizes where a bug could hide: 6 rows of 48 tokens, 2 a micro-batch, so that one rank has
# 3 micro-steps, two have 2 (with rows of weight zero) and three have 1.
TINY = (
    "data=jsonl",
    "data.sequence_length=48",
    "data.held_out_fraction=0.2",
    "data.num_workers=1",
    "data.tokenizer.vocab_size=300",
    "data.tokenizer.sample_bytes=100000",
    "batch.global_batch_size=6",
    "batch.micro_batch_size=2",
    "model.hidden_size=32",
    "model.intermediate_size=64",
    "model.num_hidden_layers=2",
    "model.num_attention_heads=4",
    "model.num_key_value_heads=2",
    "model.head_dim=8",
    "model.max_position_embeddings=64",
    "model.dropout=0.1",
    "optimizer.learning_rate=0.003",
    "schedule.warmup_steps=2",
    "schedule.warmup_tokens=0",
    "steps.total=6",
    "steps.save_every=0",
    "steps.eval_every=0",
    "steps.log_every=1",
    "evals.held_out_rows=5",
    "evals.sample_tokens=4",
    "observers.tensorboard.enabled=false",
    "observers.peak_tflops=0.1",
    "resources.device=cpu",
    "resources.collective_timeout_s=200",
    "watch.enabled=false",  # its limits are longer than that
    "launch.grace_s=20",
)


def tiny_plan(folder: Path, *overrides: str, attempt: int = 1, name: str = "tiny") -> RunPlan:
    """The plan of one attempt of the run `folder/runs/NAME`; its store is shared by all."""
    corpus = tiny_text_corpus(folder / "corpus", documents=60)
    wanted = config(
        *TINY,
        f"data.sources.files.paths=[{corpus}]",
        f"data.store_root={folder / 'stores'}",
        f"run.root={folder / 'runs'}",
        f"run.name={name}",
        *overrides,
    )
    stores = prepare(wanted, log=_quiet)
    return make_plan(
        wanted,
        attempt=attempt,
        run_id=f"{name}-id",
        stores=stores,
        device="cpu",
        cores=1,
        vocab_size_of_tokenizer=read_manifest(Path(stores[0].path)).vocab_size,
    )


def tiny_run(
    folder: Path, overrides: Sequence[str] = (), *, attempt: int = 1, name: str = "tiny"
) -> RunFiles:
    """A run folder with the plan of one attempt in it."""
    plan = tiny_plan(folder, *overrides, attempt=attempt, name=name)
    run = RunFiles(folder / "runs" / name)
    run.attempt(attempt).root.mkdir(parents=True)
    write_plan(run.attempt(attempt).plan, plan)
    return run


def _quiet(line: str) -> None:
    """Progress of the preparation is not of interest."""
