"""The README.md of an exported folder: what it is, how it was trained, what was checked."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.config.sections.tasks import Seq2SeqTask
from trainer.plan import RunPlan


@dataclass(frozen=True)
class CheckResult:
    """Exported model against the trained one, on so many rows; `what` they are, as it is told."""

    rows: int
    what: str
    max_logit_difference: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.max_logit_difference <= self.tolerance


# By the task's head: what it is, the hub's word for what it does, who loads it.
_KINDS = {
    "next_token": ("A causal language model", "text-generation", "AutoModelForCausalLM"),
    "mlm": ("A masked language model", "fill-mask", "AutoModelForMaskedLM"),
    "nsp": ("A masked language model", "fill-mask", "AutoModelForPreTraining"),
    "sequence": (
        "A classifier of texts",
        "text-classification",
        "AutoModelForSequenceClassification",
    ),
    "tokens": ("A tagger of tokens", "token-classification", "AutoModelForTokenClassification"),
    "spans": ("A finder of answers", "question-answering", "AutoModelForQuestionAnswering"),
    "reward": ("A reward model", "text-classification", "AutoModelForSequenceClassification"),
    "seq2seq": ("An encoder-decoder", "text2text-generation", "AutoModelForSeq2SeqLM"),
}


# What a user of transformers types instead of model.generate(ids) alone.
READ_BOTH_WAYS = """\
import torch
from transformers import DynamicCache

cache = DynamicCache(config=model.config)
whole = torch.ones(1, 1, ids.shape[1], ids.shape[1], dtype=torch.bool)
with torch.no_grad():
    model.base_model(input_ids=ids, attention_mask=whole, past_key_values=cache, use_cache=True)
cache.crop(-1)  # generate begins with the prompt's last token
said = model.generate(ids, attention_mask=torch.ones_like(ids), past_key_values=cache)
"""


def model_card(
    plan: RunPlan, *, step: int, loss: float | None, dtype: str, check: CheckResult | None
) -> str:
    """Markdown with the front matter that model hubs read."""
    what, tag, loader = _kind(plan)
    return (
        f"---\nlibrary_name: transformers\npipeline_tag: {tag}\ntags: [longhaul]\n---\n\n"
        f"# {plan.config.run.name}\n\n"
        f"{what} trained with Longhaul. Load it with\n"
        f"`{loader}.from_pretrained(folder)`.\n\n"
        f"{_table(plan, step=step, loss=loss, dtype=dtype, check=check)}"
        f"{_how_prompts_are_read(plan)}"
    )


def adapter_card(
    plan: RunPlan,
    *,
    base: str,
    step: int,
    loss: float | None,
    dtype: str,
    check: CheckResult | None,
) -> str:
    """Of a folder that holds what was trained beside `base`, and no more."""
    what, tag, loader = _kind(plan)
    return (
        f"---\nlibrary_name: peft\nbase_model: {base}\npipeline_tag: {tag}\ntags: [longhaul]\n"
        f"---\n\n# {plan.config.run.name}\n\n"
        f"An adapter ({plan.config.model.adapter.kind}) trained with Longhaul: {what.lower()} "
        f"together with its base. Load it with\n"
        f"`PeftModel.from_pretrained({loader}.from_pretrained(base), folder)`.\n\n"
        f"{_table(plan, step=step, loss=loss, dtype=dtype, check=check)}"
        f"{_how_prompts_are_read(plan)}"
    )


def _how_prompts_are_read(plan: RunPlan) -> str:
    task = plan.config.task
    if not isinstance(task, Seq2SeqTask) or not task.prefix_lm:
        return ""
    return (
        "\n## Prompts are read both ways\n\n"
        "It is a prefix-LM: tokens of a prompt saw one another both ways in training. `generate` "
        "and other programs read prompts\ncausally, which this model did not learn; nothing in "
        "config.json can tell them. With the token ids of one prompt:\n\n"
        f"```python\n{READ_BOTH_WAYS}```\n"
    )


def _kind(plan: RunPlan) -> tuple[str, str, str]:
    return _KINDS["seq2seq" if plan.decoder_start_id is not None else plan.config.task.head]


def _table(
    plan: RunPlan, *, step: int, loss: float | None, dtype: str, check: CheckResult | None
) -> str:
    config = plan.config
    tokens = step * plan.tokens_per_step
    sources = ", ".join(f"{s.source} (weight {s.weight:g})" for s in plan.stores)
    checked = (
        "not checked"
        if check is None
        else f"logits equal the trained model's to {check.max_logit_difference:.1e} "
        f"on {check.rows} {check.what}"
    )
    term = "token" if config.task.data == "text" else "term"
    rows = {
        "run": f"{config.run.name} ({plan.run_id})",
        "parameters": f"{plan.num_parameters:,}",
        **({"trained": f"{plan.num_trained:,}"} if config.model.adapter.kind != "none" else {}),
        "step": f"{step:,} of {config.steps.total:,}",
        "tokens": f"about {tokens:,}",
        "training loss": "unknown" if loss is None else f"{loss:.4f} nats a {term}",
        "data": sources,
        "sequence length": f"{config.data.sequence_length}",
        "optimizer": f"{config.optimizer.kind}, learning rate {config.optimizer.learning_rate:g}, "
        f"schedule {config.schedule.kind}",
        "precision": f"trained {config.precision.kind}, exported {dtype}",
        "check": checked,
    }
    lines = "\n".join(f"| {k} | {v} |" for k, v in rows.items())
    return f"| | |\n|---|---|\n{lines}\n"
