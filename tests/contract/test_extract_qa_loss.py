"""The loss of answers in texts, against Hugging Face's own class over the same windows."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.encoders import examples, hugging_face, sharp_encoder, tiny_encoder
from trainer.batch import ExampleBatch
from trainer.models.heads import HeadSpec
from trainer.tasks.extract_qa import ExtractQa

SPANS = ((2, 4), (0, 0), (11, 11), (1, 8))  # (0, 0): this window has no answer
TASK = ExtractQa(answer_tokens=4, no_answer=True, threshold=0.0)


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_loss_is_that_of_hugging_face_window_by_window(family: str) -> None:
    found = examples()
    model = sharp_encoder(tiny_encoder(family), HeadSpec("spans"))
    theirs, losses = hugging_face(model), []
    for (first, last), ids, mask, segments in zip(
        SPANS, found.inputs_ET, found.mask_ET, found.segments_ET, strict=True
    ):
        n = int(mask.sum())  # alone: their loss would count padding as possible answers
        given = {"input_ids": ids[None, :n]}
        if family == "bert":
            given["token_type_ids"] = segments[None, :n]
        places = torch.tensor([first]), torch.tensor([last])
        said = theirs(**given, start_positions=places[0], end_positions=places[1])
        losses.append(said.loss.item())
    for fields in (found.apart, found.packed):
        padding = len(fields["first_E"]) - len(SPANS)
        fields["spans_EC"] = torch.tensor([*SPANS, *[(0, 0)] * padding])
        fields["weights_E"] = torch.tensor([1.0] * len(SPANS) + [0.0] * padding)
        batch = ExampleBatch(fields, (0,), len(SPANS), 31)
        assert TASK.loss_sum(model, batch).item() == pytest.approx(sum(losses), abs=2e-5)
