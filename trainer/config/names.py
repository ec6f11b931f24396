"""The nearest right name for a wrong one, and how lists of names are written."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence

# What other trainers call our settings.
SYNONYMS = {
    "accumulate_grad_batches": "batch.micro_batch_size",
    "batch_size": "batch.global_batch_size",
    "betas": "optimizer.beta2",
    "block_size": "data.sequence_length",
    "bs": "batch.global_batch_size",
    "clip": "optimizer.max_grad_norm",
    "context_length": "data.sequence_length",
    "epochs": "steps.epochs",
    "eval_steps": "steps.eval_every",
    "experiment_name": "run.name",
    "grad_clip": "optimizer.max_grad_norm",
    "gradient_accumulation_steps": "batch.micro_batch_size",
    "gradient_checkpointing": "model.activation_checkpointing",
    "gradient_clipping": "optimizer.max_grad_norm",
    "learning_rate": "optimizer.learning_rate",
    "logging_steps": "steps.log_every",
    "lr": "optimizer.learning_rate",
    "max_length": "data.sequence_length",
    "max_seq_length": "data.sequence_length",
    "max_steps": "steps.total",
    "micro_bs": "batch.micro_batch_size",
    "n_embd": "model.hidden_size",
    "n_head": "model.num_attention_heads",
    "n_layer": "model.num_hidden_layers",
    "nproc_per_node": "resources.ranks_per_node",
    "num_train_epochs": "steps.epochs",
    "output_dir": "run.root",
    "per_device_train_batch_size": "batch.micro_batch_size",
    "save_steps": "steps.save_every",
    "seed": "run.seed",
    "seq_len": "data.sequence_length",
    "seq_length": "data.sequence_length",
    "steps": "steps.total",
    "train_batch_size": "batch.global_batch_size",
    "train_micro_batch_size_per_gpu": "batch.micro_batch_size",
    "warmup": "schedule.warmup_steps",
    "wd": "optimizer.weight_decay",
    "zero_stage": "engine.stage",
}


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name most like `name`, or None if nothing is."""
    found = difflib.get_close_matches(name, list(known), 1, 0.5)
    return found[0] if found else None


def nearest_setting(key: str, known: Sequence[str]) -> str | None:
    """The dotted setting most like `key`: what other trainers call it, then section and name.

    A right name in a wrong section counts for more than a right section with a wrong name.
    """
    own = key.rpartition(".")[2]
    scored = [(_alikeness(key, candidate), candidate) for candidate in known]
    best, candidate = max(scored, default=(0.0, ""))
    meant = SYNONYMS.get(own)
    if meant in known and best < 0.9:
        return meant
    least = 0.62 if len(own) > 4 else 0.75  # two letters of three are alike by chance
    return candidate if best >= least else None


def nearest_group(key: str, groups: Mapping[str, Sequence[str]], *, value: str) -> str | None:
    """The group (name -> its choices) that a misspelt `key=value` chooses from.

    None: `key` is more likely a setting. A value that is one of the choices outweighs a key that is
    far off.
    """
    path = key.replace(".", "/")
    if path in SYNONYMS:
        return None
    scored = []
    for group, choices in groups.items():
        if group.count("/") != path.count("/"):
            continue
        pairs = zip(path.split("/"), group.split("/"), strict=True)
        alike = min(difflib.SequenceMatcher(None, a, b).ratio() for a, b in pairs)
        if alike >= (0.6 if value in choices else 0.75):
            scored.append((alike, group))
    return max(scored, default=(0.0, None))[1]


def _alikeness(key: str, candidate: str) -> float:
    section, _, own = key.rpartition(".")
    right_section, _, right_own = candidate.rpartition(".")
    by_name = difflib.SequenceMatcher(None, own, right_own).ratio()
    if not section:
        return max(by_name * 0.95, difflib.SequenceMatcher(None, key, candidate).ratio())
    return 0.6 * by_name + 0.4 * difflib.SequenceMatcher(None, section, right_section).ratio()


def or_list(names: Sequence[str]) -> str:
    """'a', 'a or b', 'a, b or c'."""
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} or {names[-1]}"
