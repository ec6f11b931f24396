"""Masked text: what is hidden, of which rows, and the loss against Hugging Face's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.helpers.encoders import ENCODERS, examples, hugging_face, sharp_encoder, tiny_encoder
from tests.helpers.tokenizer_folders import bert_folder, gpt_folder
from trainer.batch import IGNORED, ExampleBatch, TokenBatch
from trainer.config.sections.tasks import MaskedLmTask
from trainer.data.tokenizer import TextTokenizer
from trainer.data.words import TokenKinds, token_kinds
from trainer.errors import DataError
from trainer.models.heads import HeadSpec
from trainer.tasks.masked_lm import MaskedLm
from trainer.tasks.masked_rows import MaskedRows

VOCAB, END, MASK = 50, 3, 4
LENGTH = 40
_IDS = np.arange(VOCAB)
KINDS = TokenKinds(MASK, _IDS > MASK, _IDS % 3 == 0)  # every third token begins a word


def masked(**changes: object) -> MaskedRows:
    section = {"kind": "masked_lm", "rate": 0.25, "to_mask": 0.8, "to_random": 0.1, "unit": "token"}
    packing = bool(changes.pop("packing", True))
    return MaskedRows(MaskedLmTask(**(section | changes)), KINDS, seed=7, packing=packing)  # type: ignore[arg-type]


def rows(samples: tuple[int, ...]) -> TokenBatch:
    """Two packed rows: documents of 15, 15, 10 and of 40 tokens; a third that is padding."""
    random = torch.Generator().manual_seed(1)
    inputs = torch.randint(MASK + 1, VOCAB, (3, LENGTH), generator=random)
    positions = torch.arange(LENGTH).repeat(3, 1)
    positions[0, 15:30] -= 15
    positions[0, 30:] -= 30
    inputs[0, [14, 29]] = END
    inputs[2] = END
    labels = torch.full_like(inputs, IGNORED)
    return TokenBatch(inputs, labels, positions, samples, 0, 2 * LENGTH)


def test_labels_are_what_was_hidden_and_special_tokens_never_are() -> None:
    before, after = rows((4, 5)), masked()(rows((4, 5)), "train")
    inputs, labels = after.fields["inputs_RT"], after.fields["labels_RT"]
    counts = labels != IGNORED
    assert after.terms == int(counts.sum()) > 10
    assert torch.equal(torch.where(counts, labels, inputs), before.inputs_RT)
    assert not (counts & (before.inputs_RT == END)).any()
    assert after.fields["documents_RT"].tolist() == [
        [1] * 15 + [2] * 15 + [3] * 10,
        [1] * 40,
        [0] * 40,
    ]
    assert not counts[2].any()
    assert after.sample_indices == (4, 5)


def test_a_sample_is_masked_alike_wherever_it_stands_and_anew_in_the_next_epoch() -> None:
    both = masked()(rows((4, 5)), "train").fields["inputs_RT"]
    whole = rows((5,))
    second = TokenBatch(
        whole.inputs_RT[1:], whole.labels_RT[1:], whole.positions_RT[1:], (5,), 0, LENGTH
    )
    assert torch.equal(masked()(second, "train").fields["inputs_RT"][0], both[1])
    later = masked()(rows((104, 105)), "train").fields["inputs_RT"]
    assert not torch.equal(both[:2], later[:2])
    held_out = [masked()(rows((4, 5)), "held_out").fields["inputs_RT"] for _ in range(2)]
    assert torch.equal(*held_out)
    assert not torch.equal(held_out[0], both)


def test_whole_words_are_hidden_whole_and_end_with_their_document() -> None:
    before = rows((4, 5))
    after = masked(unit="word")(before, "train")
    counts = after.fields["labels_RT"] != IGNORED
    begins = torch.from_numpy(KINDS.begins_V)[before.inputs_RT] | (before.positions_RT == 0)
    inside = ~begins & (before.inputs_RT != END)
    inside[:, 1:] &= before.inputs_RT[:, :-1] != END
    assert torch.equal(counts[:, 1:][inside[:, 1:]], counts[:, :-1][inside[:, 1:]])
    assert counts.any()


def test_padding_of_a_piece_is_no_document() -> None:
    batch = rows((4, 5))
    labels = batch.inputs_RT.roll(-1, 1)
    labels[0, 9:] = IGNORED  # a piece of 10 tokens, the last of which says nothing
    piece = TokenBatch(batch.inputs_RT, labels, torch.arange(LENGTH).repeat(3, 1), (4, 5), 0, 50)
    documents = masked(packing=False)(piece, "train").fields["documents_RT"]
    assert documents.sum(-1).tolist() == [10, LENGTH, 0]


@pytest.mark.parametrize("family", ENCODERS)
def test_loss_is_that_of_hugging_face(family: str) -> None:
    found = examples()
    model = sharp_encoder(tiny_encoder(family), HeadSpec("mlm"))
    given = {"input_ids": found.inputs_ET, "attention_mask": found.mask_ET}
    if family in ("bert", "roberta"):
        given["token_type_ids"] = found.segments_ET
    labels = found.apart["labels_RT"]
    said = hugging_face(model)(**given, labels=labels)
    theirs = said.loss.item()
    terms = int((labels != IGNORED).sum())
    logits = said.logits.double().flatten(0, 1)
    smooth = F.cross_entropy(logits, labels.flatten(), reduction="sum", label_smoothing=0.2)
    log_z = torch.logsumexp(logits, -1)[labels.flatten() != IGNORED]
    changed = (smooth + 0.01 * log_z.square().sum()).item() / terms
    for fields in (found.apart, found.packed):
        batch = ExampleBatch(fields, (0,), terms, 31)
        assert MaskedLm().loss_sum(model, batch).item() / terms == pytest.approx(theirs, abs=5e-6)
        other = MaskedLm(label_smoothing=0.2, z_loss=0.01)
        assert other.loss_sum(model, batch).item() / terms == pytest.approx(changed, abs=5e-6)
        values = other.values(other.score(model, batch))
        assert values["loss"] == pytest.approx(theirs, abs=5e-6)


def test_what_a_vocabulary_says(tmp_path: Path) -> None:
    folder = bert_folder(tmp_path / "bert")
    kinds, ids = token_kinds(folder), TextTokenizer.open(folder).tokenizer.get_vocab()
    assert kinds.mask_id == ids["[MASK]"]
    assert TextTokenizer.open(folder).end_of_text_id == ids["[SEP]"]
    assert not kinds.ordinary_V[[ids[t] for t in ("[CLS]", "[SEP]", "[MASK]", "[PAD]")]].any()
    assert all(kinds.begins_V[n] != t.startswith("##") for t, n in ids.items())
    with pytest.raises(DataError, match=r"has no mask token .* data\.tokenizer\.path=FOLDER"):
        token_kinds(gpt_folder(tmp_path / "gpt"))
