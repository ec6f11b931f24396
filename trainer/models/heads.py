"""What stands on top of a model: the head's kind and its labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from trainer.errors import ConfigError, Problem

# nsp: masked tokens and the next sentence, BERT's pretraining; seq2seq: an encoder-decoder's own;
# reward: one number for an answer, of a decoder.
HeadKind = Literal["mlm", "nsp", "sequence", "tokens", "spans", "seq2seq", "reward"]
ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]
LABELLED = ("sequence", "tokens")


@dataclass(frozen=True)
class HeadSpec:
    """`labels`: names in the order of their numbers; a regression head has one a value.

    `problem_type`: Hugging Face's word, of sequence heads alone.
    """

    kind: HeadKind
    labels: tuple[str, ...] = ()
    problem_type: ProblemType | None = None

    def __post_init__(self) -> None:
        """Raises: ConfigError for labels that do not fit the kind."""
        if self.kind in LABELLED and not self.labels:
            _refuse(f"a {self.kind} head needs at least one label, and there is none")
        if self.kind not in LABELLED and self.labels:
            _refuse(f"a {self.kind} head has no labels, and {len(self.labels)} are named")
        if len(set(self.labels)) < len(self.labels):
            twice = next(n for n in self.labels if self.labels.count(n) > 1)
            _refuse(f"the label {twice!r} is named twice")
        if self.kind == "sequence" and self.problem_type is None:
            _refuse("a sequence head must say its problem_type")
        single = self.problem_type == "single_label_classification"
        if single and len(self.labels) < 2:
            _refuse(f"a choice of one class needs at least two, and there is {self.labels[0]!r}")

    @property
    def settings(self) -> dict[str, object]:
        """The part of Hugging Face's config that says the same."""
        if self.kind == "reward":
            return {"num_labels": 1}
        if self.kind == "spans":
            return {"num_labels": 2}
        if not self.labels:
            return {}
        said: dict[str, object] = {
            "id2label": dict(enumerate(self.labels)),
            "label2id": {name: i for i, name in enumerate(self.labels)},
        }
        return said | ({"problem_type": self.problem_type} if self.problem_type else {})


def _refuse(what: str) -> None:
    raise ConfigError([Problem("task", what, "")])
