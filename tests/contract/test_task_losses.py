"""Losses and scores of the tasks against Hugging Face's own, and readings by hand."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.encoders import (
    ENCODERS,
    Examples,
    examples,
    hugging_face,
    sharp_encoder,
    tiny_encoder,
)
from trainer.batch import IGNORED, ExampleBatch
from trainer.errors import ConfigError
from trainer.models.heads import HeadSpec
from trainer.tasks.relations import Relations
from trainer.tasks.tag import Tag

TAGS = ("B-PER", "I-PER", "B-LOC", "I-LOC", "O")


def batch_of(fields: dict[str, torch.Tensor], *, terms: int) -> ExampleBatch:
    return ExampleBatch(fields, (0,), terms, int((fields["documents_RT"] > 0).sum()))


def with_labels(found: Examples, numbers: int) -> tuple[Examples, int]:
    """Labels below `numbers` in both layouts, the same of each example; (examples, terms)."""
    for fields in (found.apart, found.packed):
        labels = fields["labels_RT"]
        fields["labels_RT"] = torch.where(labels == IGNORED, IGNORED, labels % numbers)
    return found, int((found.apart["labels_RT"] != IGNORED).sum())


@pytest.mark.parametrize("family", ENCODERS)
def test_loss_of_tags_is_that_of_hugging_face_apart_and_packed(family: str) -> None:
    found, terms = with_labels(examples(), len(TAGS))
    model = sharp_encoder(tiny_encoder(family), HeadSpec("tokens", TAGS))
    given = {"input_ids": found.inputs_ET, "attention_mask": found.mask_ET}
    if family in ("bert", "roberta"):
        given["token_type_ids"] = found.segments_ET
    theirs = hugging_face(model)(**given, labels=found.apart["labels_RT"]).loss.item()
    for fields in (found.apart, found.packed):
        ours = Tag(TAGS, "bio").loss_sum(model, batch_of(fields, terms=terms)) / terms
        assert ours.item() == pytest.approx(theirs, abs=5e-6)


class Says(torch.nn.Module):
    """A model whose first choice at each position is given."""

    def __init__(self, chosen_RT: torch.Tensor, num_labels: int) -> None:
        super().__init__()
        self.logits_RTC = torch.nn.functional.one_hot(chosen_RT, num_labels).float()

    def forward(self, fields: dict[str, torch.Tensor], *, want: str) -> torch.Tensor:
        assert want == "tokens"
        return self.logits_RTC


def _row(*tags: str) -> torch.Tensor:
    return torch.tensor([[TAGS.index(t) if t in TAGS else IGNORED for t in tags]])


def test_entities_end_where_their_example_does() -> None:
    """Two examples share a row: B-PER | I-PER is an entity of each, and never one of two words."""
    labels = _row("B-PER", "", "O", "B-PER", "I-PER", "")
    documents = torch.tensor([[1, 1, 1, 2, 2, 0]])
    said = _row("B-PER", "B-LOC", "I-PER", "I-PER", "I-PER", "O")  # B-LOC on no first sub-word
    fields = {"labels_RT": labels, "documents_RT": documents}
    task = Tag(TAGS, "bio")
    sums = task.score(Says(said, len(TAGS)), batch_of(fields, terms=4))
    values = task.values(sums)
    # right: the second example's entity (I- begins one, as CoNLL's script has it); wrong: the first
    assert values["entity_precision"] == pytest.approx(1 / 2)
    assert values["entity_recall"] == pytest.approx(1 / 2)
    assert values["token_accuracy"] == pytest.approx(2 / 4)
    twice = task.values({name: 2 * value for name, value in sums.items()})
    assert twice == pytest.approx(values)


def test_tags_without_spans_are_scored_a_word() -> None:
    labels, documents = _row("O", "B-PER", "O", ""), torch.tensor([[1, 1, 2, 2]])
    task = Tag(TAGS, "plain")
    fields = {"labels_RT": labels, "documents_RT": documents}
    values = task.values(task.score(Says(_row("O", "O", "O", "O"), 5), batch_of(fields, terms=3)))
    assert values["token_accuracy"] == pytest.approx(2 / 3)
    assert values["macro_f1"] == pytest.approx(0.8 / 2)
    assert "entity_f1" not in values


RELATIONS = ("Other", "Cause-Effect(e1,e2)", "Cause-Effect(e2,e1)", "Sibling")


class Chooses(torch.nn.Module):
    """A model whose class of each example is given."""

    def __init__(self, classes: tuple[int, ...], num_labels: int) -> None:
        super().__init__()
        self.logits_EC = torch.nn.functional.one_hot(torch.tensor(classes), num_labels).float()

    def forward(self, fields: dict[str, torch.Tensor], *, want: str) -> torch.Tensor:
        assert want == "sequence"
        return self.logits_EC


def test_relations_are_scored_with_their_direction_and_padding_is_none() -> None:
    task = Relations(RELATIONS, none="Other", symmetric=["Sibling"])
    fields = {
        "classes_E": torch.tensor([0, 1, 1, 3, 1]),
        "weights_E": torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0]),
    }
    said = Chooses((0, 1, 2, 3, 2), len(RELATIONS))  # the third one is the wrong way round
    batch = ExampleBatch(fields, (0,), 4, 20)
    values = task.values(task.score(said, batch))
    assert values["accuracy"] == pytest.approx(3 / 4)
    assert values["relation_precision"] == pytest.approx(2 / 3)
    assert values["relation_recall"] == pytest.approx(2 / 3)
    assert values["relation_f1_any_direction"] == 1.0
    theirs = torch.nn.functional.cross_entropy(said.logits_EC[:4], fields["classes_E"][:4])
    assert task.loss_sum(said, batch).item() / 4 == pytest.approx(theirs.item(), abs=5e-6)


@pytest.mark.parametrize("family", ENCODERS)
def test_loss_of_relations_is_that_of_hugging_face(family: str) -> None:
    found = examples()
    head = HeadSpec("sequence", RELATIONS, "single_label_classification")
    model = sharp_encoder(tiny_encoder(family), head)
    given = {"input_ids": found.inputs_ET, "attention_mask": found.mask_ET}
    if family in ("bert", "roberta"):
        given["token_type_ids"] = found.segments_ET
    classes = torch.tensor([2, 0, 1, 3])
    theirs = hugging_face(model)(**given, labels=classes).loss.item()
    task = Relations(RELATIONS, none="Other", symmetric=())
    for fields in (found.apart, found.packed):
        padding = len(fields["first_E"]) - 4
        fields["classes_E"] = torch.cat([classes, torch.zeros(padding, dtype=torch.long)])
        fields["weights_E"] = torch.tensor([1.0] * 4 + [0.0] * padding)
        ours = task.loss_sum(model, ExampleBatch(fields, (0,), 4, 31)).item() / 4
        assert ours == pytest.approx(theirs, abs=5e-6)


def test_a_name_that_is_no_label_is_refused() -> None:
    with pytest.raises(ConfigError, match="'Othr' is none of the data's") as seen:
        Relations(RELATIONS, none="Othr", symmetric=())
    assert seen.value.problems[0].fix == "task.none=Other"
    with pytest.raises(ConfigError, match=r"task\.symmetric: 'Sister' is none"):
        Relations(RELATIONS, none=None, symmetric=["Sister"])
