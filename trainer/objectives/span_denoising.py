"""Span denoising for encoder-decoders: spans are cut out, and the decoder says them.

    raw       Thank you for inviting me to your party last week
    inputs    Thank you <X> me to your party <Y> week </s>
    targets   <X> for inviting <Y> last <Z> </s>

Source: Raffel et al. 2020 (T5), sec. 3.1.4 and figure 2; span lengths sec. 3.3.4; the way in which
a row is cut at random is that of `random_spans_noise_mask` in google-research/text-to-text-transfer
-transformer, t5/data/preprocessors.py (read 2026-11-22).

Shapes: T raw positions, T_in and T_out those of the two rows, N spans.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer.dist.draws import Draws
from trainer.errors import DataError

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class SpanDenoising:
    """`sentinels`: ids of <X>, <Y>, ... in the order of their use (T5: from the last id down).

    `final_sentinel`: targets end with the next unused one, as in the paper; T5's released code and
    Hugging Face's examples leave it out.
    """

    sentinels: Sequence[int]
    end_id: int
    density: float = 0.15
    mean_length: float = 3.0
    final_sentinel: bool = True


def lengths(raw: int, settings: SpanDenoising) -> tuple[int, int, int]:
    """(spans, T_in, T_out) of a row of `raw` tokens: the same for every row of that length."""
    noise, spans = _noise_and_spans(raw, settings)
    return spans, raw - noise + spans + 1, noise + spans + settings.final_sentinel + 1


def longest_raw(max_T_in: int, settings: SpanDenoising) -> int:
    """The most raw tokens whose inputs fit `max_T_in`. T5 (512, 15 %, 3): 568, targets of 115.

    (Of 114 without the final sentinel.)
    Raises: DataError if not even two tokens fit.
    """
    if max_T_in < 3:
        raise DataError(f"span denoising needs inputs of 3 tokens at least, but has {max_T_in}")
    raw = 2
    while lengths(raw + 1, settings)[1] <= max_T_in:
        raw += 1
    return raw


def denoised_row(
    ids_T: Ids, *, settings: SpanDenoising, seed: int, step: int, row: int, document: int = 0
) -> tuple[Ids, Ids]:
    """(inputs, targets) of one row, or of a document in it, a pure function of (seed, step, row,
    document).

    Raises: DataError for a row of less than two tokens, or one with more spans than sentinels.
    """
    noise, spans = _noise_and_spans(len(ids_T), settings)
    if spans + settings.final_sentinel > len(settings.sentinels):
        raise DataError(
            f"a row of {len(ids_T)} tokens has {spans} spans to hide, but the tokenizer has only "
            f"{len(settings.sentinels)} sentinel tokens: use shorter rows or longer spans"
        )
    draws = Draws("spans", seed, step, row, document)
    hidden = _cut(noise, spans, draws)
    shown = _cut(len(ids_T) - noise, spans, draws)
    inputs: list[Ids] = []
    targets: list[Ids] = []
    at = 0
    for number, (kept, cut) in enumerate(zip(shown, hidden, strict=True)):
        sentinel = np.array([settings.sentinels[number]], np.int64)
        inputs += [ids_T[at : at + kept], sentinel]
        targets += [sentinel, ids_T[at + kept : at + kept + cut]]
        at += kept + cut
    if settings.final_sentinel:
        targets.append(np.array([settings.sentinels[spans]], np.int64))
    end = np.array([settings.end_id], np.int64)
    return np.concatenate([*inputs, end]), np.concatenate([*targets, end])


def _noise_and_spans(raw: int, settings: SpanDenoising) -> tuple[int, int]:
    """Hidden tokens, and the spans they lie in. Rows begin with what is shown, and end hidden."""
    if raw < 2:
        raise DataError(f"span denoising needs rows of two tokens at least, but one has {raw}")
    noise = min(max(round(raw * settings.density), 1), raw - 1)
    spans = max(round(noise / settings.mean_length), 1)
    return noise, min(spans, raw - noise)


def _cut(total: int, pieces: int, draws: Draws) -> list[int]:
    """Lengths >= 1 that add up to `total`; every such list is equally likely."""
    marks = np.sort(draws.order(total - 1)[: pieces - 1]) + 1
    return [int(piece) for piece in np.diff(np.concatenate([[0], marks, [total]]))]
