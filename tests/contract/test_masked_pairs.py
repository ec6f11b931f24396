"""Masked text in pairs of stretches: which they are, how they stand in rows, BERT's own loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers.encoders import hugging_face, sharp_encoder, tiny_encoder
from tests.helpers.task_cases import CASES, case_plan
from tests.helpers.tokenizer_folders import gpt_folder
from trainer.batch import IGNORED, ExampleBatch
from trainer.data.pair_reader import PairReader
from trainer.data.row_shape import RowShape, StreamSource
from trainer.data.sentence_pairs import FOLLOWS, RANDOM
from trainer.data.table import open_sources
from trainer.data.words import pair_marks, token_kinds
from trainer.errors import ConfigError, DataError
from trainer.models.heads import HeadSpec
from trainer.plan import RunPlan
from trainer.tasks.masked_pairs import MaskedPairs
from trainer.tasks.table import change_of

LENGTH = 48


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> RunPlan:
    return case_plan(tmp_path_factory.mktemp("pairs"), "masked_lm_nsp")


def reader_of(plan: RunPlan, *, seed: int = 7, rows: int = 8) -> PairReader:
    shape = RowShape(
        global_batch_size=rows, micro_batch_size=rows, sequence_length=LENGTH, packing=True
    )
    return PairReader(open_sources(plan), shape, seed=seed)


def read(reader: PairReader, rows: list[int], samples: list[int], split: Any = "train") -> Any:
    zeros = np.zeros(len(rows), dtype=np.int64)
    given = (np.array(rows, dtype=np.int64), np.array(samples, dtype=np.int64))
    (batch,) = reader.batches(split, zeros, given[0], samples=given[1], sizes=[len(rows)])
    return batch


def documents(plan: RunPlan) -> list[list[int]]:
    """Of what is trained on, without the token that ends each."""
    (source,) = open_sources(plan)
    return [tokens[:-1].tolist() for tokens in source.store.train.documents()]


def within(part: list[int], whole: list[int]) -> list[int]:
    """Where the part stands in the whole."""
    found = range(len(whole) - len(part) + 1)
    return [at for at in found if whole[at : at + len(part)] == part]


def test_half_of_the_rows_go_on_and_the_others_cross_documents(plan: RunPlan) -> None:
    reader, texts = reader_of(plan, rows=1), documents(plan)
    marks = pair_marks(Path(plan.stores[0].path))
    total = reader.num_rows("train")[0]
    labels, firsts = [], set()
    for sample in range(2 * total):
        fields = read(reader, [sample % total], [sample]).fields
        ids = fields["inputs_RT"][0][fields["documents_RT"][0] > 0].tolist()
        assert ids[0] == marks.start
        middle = ids.index(marks.end)
        assert ids[-1] == marks.end
        one, other = ids[1:middle], ids[middle + 1 : -1]
        segments = fields["segments_RT"][0].tolist()
        assert segments == [0] * (middle + 1) + [1] * (len(other) + 1) + [0] * (LENGTH - len(ids))
        joined = any(within(one + other, text) for text in texts)
        label = int(fields["classes_E"][0])
        assert joined == (label == FOLLOWS)
        if label == RANDOM:
            assert any(within(other, text) for text in texts)
        labels.append(label)
        firsts.add(tuple(one))
    assert labels.count(FOLLOWS) == labels.count(RANDOM) == total
    assert all({a, b} == {FOLLOWS, RANDOM} for a, b in zip(labels[::2], labels[1::2], strict=True))
    assert len(firsts) == total  # every stretch that has a next one begins a row


def test_a_row_follows_from_its_seed_and_sample_alone(plan: RunPlan) -> None:
    change = change_of(plan)
    assert change is not None
    rows, samples = [3, 0, 5, 1], [10, 11, 12, 13]

    def made(order: list[int], seed: int = 7, shift: int = 0, split: Any = "train") -> Any:
        reader = reader_of(plan, seed=seed, rows=len(order))
        batch = read(reader, [rows[i] for i in order], [samples[i] + shift for i in order], split)
        return change(batch, split).fields

    whole, turned = made([0, 1, 2, 3]), made([3, 1, 0, 2])
    for name in ("inputs_RT", "labels_RT", "segments_RT", "documents_RT"):
        assert torch.equal(whole[name][[3, 1, 0, 2]], turned[name]), name
    for other in (made([0, 1, 2, 3], seed=8), made([0, 1, 2, 3], shift=100)):
        assert not torch.equal(whole["inputs_RT"], other["inputs_RT"])
    few = [0, 1]
    kept = [made(few, seed=seed, split="held_out") for seed in (7, 8)]
    assert torch.equal(kept[0]["classes_E"], kept[1]["classes_E"])


def test_marks_are_never_hidden_and_labels_are_what_was(plan: RunPlan) -> None:
    change = change_of(plan)
    assert change is not None
    before = read(reader_of(plan), list(range(8)), list(range(8)))
    after = change(before, "train")
    kinds = token_kinds(Path(plan.stores[0].path))
    hidden = after.fields["labels_RT"] != IGNORED
    given = before.fields["inputs_RT"]
    assert torch.equal(
        torch.where(hidden, after.fields["labels_RT"], after.fields["inputs_RT"]), given
    )
    assert torch.from_numpy(kinds.ordinary_V)[given[hidden]].all()
    share = hidden.sum() / (before.fields["documents_RT"] > 0).sum()
    assert 0.08 < share < 0.16
    assert after.terms == before.terms == 8


def test_the_loss_is_that_of_berts_own_class_row_by_row(plan: RunPlan) -> None:
    """And so is the gradient of a step; rows of padding add nothing."""
    change = change_of(plan)
    assert change is not None
    batch = change(read(reader_of(plan), list(range(8)), list(range(8))), "train")
    vocabulary = 97
    fields = dict(batch.fields)
    fields["inputs_RT"] = fields["inputs_RT"] % vocabulary
    labels = fields["labels_RT"]
    fields["labels_RT"] = torch.where(labels == IGNORED, IGNORED, labels % vocabulary)
    model = sharp_encoder(tiny_encoder("bert"), HeadSpec("nsp"))
    theirs = hugging_face(model)
    for module in theirs.modules():  # ids here are of no vocabulary: none is padding
        if isinstance(module, torch.nn.Embedding):
            module.padding_idx = None
    losses = []
    for row in range(8):
        real = fields["documents_RT"][row] > 0
        said = theirs(
            input_ids=fields["inputs_RT"][row, real][None],
            token_type_ids=fields["segments_RT"][row, real][None],
            attention_mask=torch.ones(1, int(real.sum()), dtype=torch.long),
            labels=fields["labels_RT"][row, real][None],
            next_sentence_label=fields["classes_E"][row][None],
        )
        losses.append(said.loss)
    expected = torch.stack(losses).sum()
    ours = MaskedPairs().loss_sum(model, ExampleBatch(fields, batch.sample_indices, 8, 0))
    assert ours.item() == pytest.approx(expected.item(), rel=1e-6)
    ours.backward()  # type: ignore[no-untyped-call]
    expected.backward()  # type: ignore[no-untyped-call]
    of_theirs = dict(theirs.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, of_theirs[name].grad, rtol=1e-3, atol=1e-5)
    task = MaskedPairs()
    scores = task.values(task.score(model, ExampleBatch(fields, batch.sample_indices, 8, 0)))
    assert scores["loss"] == pytest.approx(expected.item() / 8, rel=1e-6)


def test_rows_of_padding_add_nothing(plan: RunPlan) -> None:
    change = change_of(plan)
    assert change is not None
    nothing = change(read(reader_of(plan, rows=2), [], []), "train")
    fields = dict(nothing.fields)
    fields["inputs_RT"] = fields["inputs_RT"] % 97
    model = sharp_encoder(tiny_encoder("bert"), HeadSpec("nsp"))
    loss = MaskedPairs().loss_sum(model, ExampleBatch(fields, (), 0, 0))
    assert loss.item() == 0.0
    loss.backward()  # type: ignore[no-untyped-call]
    assert not any(p.grad is not None and p.grad.any() for p in model.parameters())


def test_a_corpus_or_tokenizer_that_makes_no_pairs_is_refused(
    plan: RunPlan, tmp_path: Path
) -> None:
    with pytest.raises(
        DataError, match=r"no \[CLS\] and no \[SEP\] and no \[PAD\].*task=masked_lm"
    ):
        pair_marks(gpt_folder(tmp_path / "gpt"))
    short = RowShape(global_batch_size=1, micro_batch_size=1, sequence_length=LENGTH, packing=True)
    one = ["data.held_out_fraction=0.01", "evals.held_out_rows=0", "data.sequence_length=24"]
    (source,) = open_sources(case_plan(tmp_path, "masked_lm_nsp", one, count=1))
    with pytest.raises(DataError, match="data source files: next-sentence prediction needs two"):
        PairReader([StreamSource("files", source.store, 1.0)], short, seed=0)


def test_only_bert_has_the_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="roberta has no head for next sentences; bert has one"):
        case_plan(tmp_path, "masked_lm_nsp", ["model.family=roberta"])
    with pytest.raises(ConfigError, match="a pair of stretches needs rows of 19 tokens at least"):
        case_plan(tmp_path, "masked_lm_nsp", ["data.sequence_length=16"])
    assert CASES["masked_lm_nsp"].text
