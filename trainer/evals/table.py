"""The evals section -> evaluations: which class stands behind which setting."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from trainer.data.stream import Stream
from trainer.data.table import Sources
from trainer.data.tokenizer import TextTokenizer
from trainer.evals.held_out import HeldOut
from trainer.evals.none_held_out import none_held_out_text
from trainer.evals.sample import Sample
from trainer.plan import RunPlan
from trainer.tasks.base import Task

_log = logging.getLogger(__name__)


def evals_of(
    plan: RunPlan, task: Task, *, stream: Stream[Any], sources: Sources
) -> list[HeldOut | Sample]:
    """Every rank has the same ones in the same order. Not collective.

    Raises: DataError if the tokenizer of the store cannot be read.
    """
    config = plan.config
    is_text = config.task.data == "text"
    found: list[HeldOut | Sample] = []
    batches = list(stream.held_out_batches(config.evals.held_out_rows))
    if not batches and config.evals.held_out_rows and stream.rank == 0:
        _log.warning("%s", none_held_out_text(plan))
    if batches:
        reference = {"unigram_entropy": _unigram_entropy(sources)} if is_text else {}
        found.append(
            HeldOut(
                task,
                batches,
                every=config.steps.eval_every,
                reference=reference,
                average=config.regularize.ema.decay > 0 and config.regularize.ema.evaluate,
            )
        )
    generates = is_text and config.task.head == "next_token"
    if generates and config.evals.sample_prompt and config.evals.sample_tokens:
        found.append(
            Sample(
                TextTokenizer.open(Path(plan.stores[0].path)),
                prompt=config.evals.sample_prompt,
                num_tokens=config.evals.sample_tokens,
                max_positions=config.data.sequence_length,
                seed=config.run.seed,
            )
        )
    return found


def _unigram_entropy(sources: Sources) -> float:
    """In nats: the loss of a model that knows how often each token comes, and nothing else."""
    whole = sum(s.weight for s in sources)
    nats: float = sum(s.weight * s.store.manifest.unigram_entropy_nats for s in sources)
    return nats / whole
