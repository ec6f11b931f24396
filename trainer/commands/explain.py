"""`longhaul evaluate RUN --explain N`: which tokens of a held-out example its class rests on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainer.batch import ExampleBatch
from trainer.commands.rows import held_out_rows
from trainer.data.task_tokenizer import TaskTokenizer
from trainer.errors import Refused
from trainer.evals.attribution import (
    has_captum,
    integrated_gradients,
    integrated_gradients_of_captum,
)
from trainer.plan import RunPlan
from trainer.tasks.embeddings import embedding_of
from trainer.tasks.table import labels_of

_POINTS = 64


@dataclass(frozen=True)
class Explained:
    """`shares`: of each token in the logit of `label`, against embeddings of zeros; they add up to
    how far that logit is from theirs, but for `gap`. `by`: whose integrated gradients."""

    label: str
    tokens: tuple[str, ...]
    shares: tuple[float, ...]
    gap: float
    by: str

    def as_json(self) -> dict[str, Any]:
        pairs = [[t, s] for t, s in zip(self.tokens, self.shares, strict=True)]
        return {"label": self.label, "tokens": pairs, "gap": self.gap, "by": self.by}

    def show(self) -> None:
        how = f"integrated gradients by {self.by}, gap {self.gap:.2g}"
        print(f"said {self.label}; shares of its logit ({how})")
        for token, share in zip(self.tokens, self.shares, strict=True):
            print(f"  {share:+9.4f}  {token}")


def explained(plan: RunPlan, model: Any, number: int, *, device: torch.device) -> Explained:
    """The held-out example `number`, from 0, in the order of evaluations.

    Raises: Refused for a task whose answer is no class of a text, or an example there is not.
    """
    if plan.config.task.head != "sequence":
        what = "it says what the class of a text rests on (classify, relations)"
        raise Refused(f"--explain: {what}, and task={plan.config.task.kind} has none")
    fields = _alone(_example(plan, number), device=device)
    embedding = embedding_of(model)
    with torch.no_grad():
        embeddings_TH = embedding(fields["inputs_RT"])[0]
        chosen = int(model(fields, want="sequence")[0].argmax())

    def score(embeddings_KTH: torch.Tensor) -> torch.Tensor:
        return _logits(model, fields, embeddings_KTH)[:, chosen]

    zeros_TH = torch.zeros_like(embeddings_TH)
    by_captum = has_captum()
    attribute = integrated_gradients_of_captum if by_captum else integrated_gradients
    found = attribute(score, embeddings_TH, baseline_TH=zeros_TH, points=_POINTS)
    tokenizer = TaskTokenizer.open(Path(plan.stores[0].path))
    tokens = tuple(tokenizer.decode([one]) for one in fields["inputs_RT"][0].tolist())
    labels = labels_of(plan) or ("value",)
    shares, by = tuple(found.shares_T.tolist()), "captum" if by_captum else "longhaul"
    return Explained(labels[chosen], tokens, shares, found.gap, by)


def _example(plan: RunPlan, number: int) -> tuple[ExampleBatch, int]:
    """(the batch that holds it, its number there)."""
    left = number
    for batch in held_out_rows(plan, number + 1):  # a row holds an example at least
        assert isinstance(batch, ExampleBatch)
        terms = int(batch.terms)  # examples
        if 0 <= left < terms:
            return batch, left
        left -= terms
    raise Refused(f"--explain {number}: so many examples are not held out; they count from 0")


def _alone(found: tuple[ExampleBatch, int], *, device: torch.device) -> dict[str, torch.Tensor]:
    """The example's tokens as a row of their own."""
    batch, example = found
    width = batch.fields["inputs_RT"].shape[1]
    row, place = divmod(int(batch.fields["first_E"][example]), width)
    documents_T = batch.fields["documents_RT"][row]
    length = int((documents_T == documents_T[place]).sum())
    fields = {
        name: values[row : row + 1, place : place + length].to(device)
        for name, values in batch.fields.items()
        if name.endswith("_RT")
    }
    first_E = torch.zeros(1, dtype=torch.int64, device=device)
    ones_RT = torch.ones_like(fields["documents_RT"])
    return fields | {"documents_RT": ones_RT, "first_E": first_E}


def _logits(
    model: Any, fields: dict[str, torch.Tensor], embeddings_KTH: torch.Tensor
) -> torch.Tensor:
    """(K, C), of K copies of the row whose tokens are embedded as given."""
    copies, width = embeddings_KTH.shape[:2]
    many = {n: v.expand(copies, -1) for n, v in fields.items() if n.endswith("_RT")}
    many["first_E"] = torch.arange(copies, device=embeddings_KTH.device) * width

    def instead(_module: nn.Module, _given: Any, _out: torch.Tensor) -> torch.Tensor:
        return embeddings_KTH

    handle = embedding_of(model).register_forward_hook(instead)
    try:
        logits: torch.Tensor = model(many, want="sequence")
    finally:
        handle.remove()
    return logits
