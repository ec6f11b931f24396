"""Text with spans cut out: which, of which rows, and the pairs that a decoder learns from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers.tokenizer_folders import bert_folder, t5_folder
from trainer.batch import IGNORED, TokenBatch
from trainer.config.sections.tasks import SpanDenoisingTask
from trainer.data.sentinels import sentinels_and_end
from trainer.data.tokenizer import TextTokenizer
from trainer.errors import DataError
from trainer.tasks.denoised_rows import DenoisedRows

END, START, LENGTH = 1, 0, 40
SENTINELS = tuple(range(99, 79, -1))


def denoised(*, packing: bool = True, seed: int = 7, **changes: object) -> DenoisedRows:
    section = {"kind": "span_denoising", "rate": 0.3, "mean_length": 3.0, "final_sentinel": True}
    return DenoisedRows(
        SpanDenoisingTask(**(section | changes)),  # type: ignore[arg-type]
        sentinels=SENTINELS,
        end_id=END,
        start_id=START,
        seed=seed,
        packing=packing,
        longest=LENGTH,
    )


def rows(samples: tuple[int, ...]) -> TokenBatch:
    """Documents of 15, 1 (too short), 14 and 10 tokens, one of 40; a third row that is padding."""
    random = torch.Generator().manual_seed(1)
    inputs = torch.randint(5, 70, (3, LENGTH), generator=random)
    positions = torch.arange(LENGTH).repeat(3, 1)
    positions[0, 15] = 0
    positions[0, 16:30] = torch.arange(14)
    positions[0, 30:] -= 30
    inputs[0, [14, 29]] = END
    inputs[2] = END
    labels = torch.full_like(inputs, IGNORED)
    return TokenBatch(inputs, labels, positions, samples, 0, 2 * LENGTH)


def put_back(source: list[int], target: list[int]) -> list[int]:
    """The text: what stands behind each sentinel of the target, in that sentinel's place."""
    said: dict[int, list[int]] = {}
    for token in target:
        if token in SENTINELS:
            said[token] = []
        elif token != END:
            said[max(said, key=list(said).index)].append(token)
    return [t for s in source if s != END for t in said.get(s, [s])]


def documents(batch: object, row: int) -> list[tuple[list[int], list[int]]]:
    fields = batch.fields  # type: ignore[attr-defined]
    numbers = range(1, int(fields["documents_RT"][row].max()) + 1)
    return [
        (
            fields["inputs_RT"][row][fields["documents_RT"][row] == n].tolist(),
            fields["labels_RS"][row][fields["decoder_documents_RS"][row] == n].tolist(),
        )
        for n in numbers
    ]


def test_both_texts_of_a_document_give_it_back() -> None:
    before, after = rows((4, 5)), denoised()(rows((4, 5)), "train")
    ids = before.inputs_RT
    texts = {0: [ids[0, :14], ids[0, 16:29], ids[0, 30:]], 1: [ids[1]], 2: []}
    for row, expected in texts.items():
        found = documents(after, row)
        assert [put_back(*pair) for pair in found] == [t.tolist() for t in expected]
        for (source, target), text in zip(found, expected, strict=True):
            assert source[-1] == target[-1] == END
            hidden = [t for t in target if t not in SENTINELS and t != END]
            assert len(hidden) == round(0.3 * len(text))
            spans = [t for t in source if t in SENTINELS]
            assert target[-2] == SENTINELS[len(spans)]  # the next unused one
    assert after.terms == int((after.fields["labels_RS"] != IGNORED).sum())
    assert (after.tokens, after.sample_indices) == (before.tokens, (4, 5))


def test_a_decoder_is_given_its_start_and_what_it_has_said() -> None:
    fields = denoised()(rows((4, 5)), "train").fields
    for row in range(2):
        for n in range(1, int(fields["decoder_documents_RS"][row].max()) + 1):
            mine = fields["decoder_documents_RS"][row] == n
            given, said = fields["decoder_inputs_RS"][row][mine], fields["labels_RS"][row][mine]
            assert given.tolist() == [START, *said[:-1].tolist()]
    assert not fields["decoder_documents_RS"][2].any()
    assert bool((fields["labels_RS"][fields["decoder_documents_RS"] == 0] == IGNORED).all())


def test_a_sample_is_cut_alike_wherever_it_stands_and_anew_in_the_next_epoch() -> None:
    whole = rows((5,))
    second = TokenBatch(
        whole.inputs_RT[1:2], whole.labels_RT[1:2], whole.positions_RT[1:2], (5,), 0, LENGTH
    )
    both, alone = denoised()(rows((4, 5)), "train"), denoised()(second, "train")
    assert documents(both, 1) == documents(alone, 0)
    assert documents(denoised()(rows((104, 105)), "train"), 1) != documents(both, 1)
    assert documents(denoised(seed=8)(rows((4, 5)), "train"), 1) != documents(both, 1)
    held_out = [denoised(seed=seed)(rows((4, 5)), "held_out") for seed in (7, 8)]
    assert documents(held_out[0], 0) == documents(held_out[1], 0)


def test_documents_of_a_row_are_cut_each_in_its_own_way() -> None:
    batch = rows((4,))
    batch.inputs_RT[0, 16:31] = batch.inputs_RT[0, :15]
    batch.positions_RT[0, 15:] = torch.cat([torch.zeros(1), torch.arange(15), torch.arange(9)])
    after = denoised(mean_length=1.0)(batch, "train")  # a single span is always the end
    first, second = documents(after, 0)[:2]
    assert put_back(*first) == put_back(*second)
    assert first != second


def test_padding_of_a_piece_is_no_text() -> None:
    batch = rows((4, 5))
    labels = batch.inputs_RT.roll(-1, 1)
    labels[0, 9:] = IGNORED  # a piece of 10 tokens, the last of which says nothing
    piece = TokenBatch(batch.inputs_RT, labels, torch.arange(LENGTH).repeat(3, 1), (4, 5), 0, 50)
    after = denoised(packing=False)(piece, "train")
    (found,) = documents(after, 0)
    assert put_back(*found) == batch.inputs_RT[0, :10].tolist()
    assert not documents(after, 2)


def test_rows_that_need_more_sentinels_than_there_are_are_refused_at_the_start() -> None:
    said = r"a row of 40 tokens needs 21 sentinels, but the tokenizer has 20; lower data\.sequence"
    with pytest.raises(DataError, match=said):
        denoised(rate=0.5, mean_length=1.0)


def test_sentinels_of_a_tokenizer(tmp_path: Path) -> None:
    folder = t5_folder(tmp_path / "t5")
    found, end = sentinels_and_end(folder)
    names = TextTokenizer.open(folder).tokenizer
    assert [names.id_to_token(n) for n in found] == [f"<extra_id_{n}>" for n in range(20)]
    assert list(np.diff(found)) == [-1] * 19  # T5's come from the last id down
    assert names.id_to_token(end) == "</s>"
    with pytest.raises(DataError, match=r"has no sentinels \(<extra_id_0>, <extra_id_1>"):
        sentinels_and_end(bert_folder(tmp_path / "bert"))
