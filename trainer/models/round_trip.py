"""Texts said in another language and back, by two given models: for more examples.

Both are encoder-decoders in folders of transformers' (Marian, T5, mBART ...), read from safetensors
alone and without code of their own; the likeliest words are taken, so that the same text always
comes back the same.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from trainer.config.sections.examples import BackTranslation
from trainer.errors import DataError

_AT_ONCE = 16


class RoundTrip:
    """Called with texts, it gives each as it came back. Models are loaded at the first call."""

    def __init__(self, settings: BackTranslation) -> None:
        self._settings = settings
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._ways: list[_Way] | None = None

    def __call__(self, texts: Sequence[str]) -> list[str]:
        """Raises: DataError for a folder that is no such model."""
        if self._ways is None:
            given = self._settings
            self._ways = [
                _Way(Path(given.there), given.there_prefix, given, self._device),
                _Way(Path(given.back), given.back_prefix, given, self._device),
            ]
        said = list(texts)
        for way in self._ways:
            said = way.said(said)
        return said


class _Way:
    """One of the two models."""

    def __init__(
        self, folder: Path, prefix: str, settings: BackTranslation, device: torch.device
    ) -> None:
        transformers: Any = importlib.import_module("transformers")
        only = {"local_files_only": True, "trust_remote_code": False}
        place = str(folder.expanduser())
        try:
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(place, **only)
            self._model = transformers.AutoModelForSeq2SeqLM.from_pretrained(
                place, dtype=torch.float32, use_safetensors=True, **only
            ).to(device)
        except Exception as e:  # whatever a foreign folder makes transformers raise
            reason = str(e).splitlines()[0] if str(e) else type(e).__name__
            raise DataError(
                f"data.augment.back_translation: {folder} is no folder of an encoder-decoder with "
                f"its tokenizer that transformers can read ({reason})"
            ) from e
        self._model.eval()
        self._prefix, self._settings, self._device = prefix, settings, device

    @torch.no_grad()
    def said(self, texts: Sequence[str]) -> list[str]:
        found: list[str] = []
        for begin in range(0, len(texts), _AT_ONCE):
            part = [self._prefix + text for text in texts[begin : begin + _AT_ONCE]]
            given = self._tokenizer(
                part,
                return_tensors="pt",
                padding=True,
                truncation=True,
                max_length=self._settings.max_tokens,
            )
            ids = self._model.generate(
                input_ids=given["input_ids"].to(self._device),
                attention_mask=given["attention_mask"].to(self._device),
                num_beams=self._settings.beams,
                do_sample=False,
                max_new_tokens=self._settings.max_tokens,
            )
            found += self._tokenizer.batch_decode(ids, skip_special_tokens=True)
        return found
