"""Do documents packed into one row stay strangers? A probe, because it depends on the family.

Positions that restart at 0 are enough for the causal families here, and silently not enough for
encoders, which attend across the restart (2.7e-3 in the logits of BERT): those get a mask of
blocks, and the probe shows that it keeps them apart.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from trainer.config.sections.model import FolderModel, Model
from trainer.errors import ModelError
from trainer.models.build import SMALL_VOCAB, small_model
from trainer.models.encoder import EncoderModel
from trainer.models.encoder_decoder import FAMILIES as ENCODER_DECODERS
from trainer.models.encoder_decoder import NOT_PACKED
from trainer.models.encoder_families import FAMILIES as ENCODERS
from trainer.models.heads import HeadSpec
from trainer.models.hf_config import family_of
from trainer.models.language_model import LanguageModel

_LENGTHS = (7, 3, 12)  # longer and shorter than the probe's sliding window of 4
_PROMPT = 5  # tokens of a prompt, of documents that have one
_SEED = 20

Logits = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def check_packing(section: Model, *, device: torch.device, prefix_lm: bool = False) -> None:
    """Refuse to pack rows for a model whose documents would see each other.

    Call it only when `data.packing` is on. Draws nothing from torch's global random state.
    `prefix_lm`: each document begins with a prompt that is read both ways.
    Raises: ModelError.
    """
    family = family_of(section)
    if family in NOT_PACKED:
        raise ModelError(
            f"model {family}: its positions are places of a row, so that packed examples would get "
            "those of others; train it with data.packing=false"
        )
    if family in ENCODER_DECODERS:
        return  # T5's positions are differences: tests/contract/test_encoder_decoder.py
    is_encoder = family in ENCODERS
    model = small_model(section, device=device, head=HeadSpec("mlm") if is_encoder else None)
    _fill(model)
    flash = device.type == "cuda" and section.attention == "flash_attention_2"
    if flash:
        model.to(torch.bfloat16)
    name = section.path if isinstance(section, FolderModel) else section.family
    assert isinstance(model, EncoderModel | LanguageModel)
    if isinstance(model, EncoderModel):
        logits = encoder_logits(model)
    else:
        logits = prompted_logits(model) if prefix_lm else model.logits
    refuse_leak(logits, name=name, device=device, tolerance=0.05 if flash else 1e-4)


def encoder_logits(model: EncoderModel) -> Logits:
    """As the probe asks: the documents are those that restart, as they are in a packed row."""

    def logits(inputs_RT: torch.Tensor, positions_RT: torch.Tensor) -> torch.Tensor:
        fields = {
            "inputs_RT": inputs_RT,
            "positions_RT": positions_RT,
            "documents_RT": (positions_RT == 0).cumsum(-1),
        }
        found: torch.Tensor = model(fields, want="mlm_logits")
        return found

    return logits


def prompted_logits(model: LanguageModel) -> Logits:
    """As the probe asks: the first positions of each document are its prompt."""

    def logits(inputs_RT: torch.Tensor, positions_RT: torch.Tensor) -> torch.Tensor:
        return model.logits(inputs_RT, positions_RT, prompts_RT=positions_RT < _PROMPT)

    return logits


def refuse_leak(
    logits: Logits, *, name: str, device: torch.device, tolerance: float = 1e-4
) -> None:
    """Raises: ModelError if `packing_leak` is above `tolerance`."""
    leak = packing_leak(logits, device=device)
    if not leak <= tolerance:
        raise ModelError(
            f"model {name}: documents packed into one row see each other (logits change by "
            f"{leak:.1e} of their size); train it with data.packing=false"
        )


@torch.no_grad()
def packing_leak(logits: Logits, *, device: torch.device) -> float:
    """Largest change of a logit by packing, as a share of the largest logit.

    `logits(inputs, positions)`: int64 (1, T) both, token ids below 64 -> (1, T, V).
    """
    random = torch.Generator().manual_seed(_SEED)
    documents = [torch.randint(SMALL_VOCAB, (1, n), generator=random) for n in _LENGTHS]
    positions = [torch.arange(n).unsqueeze(0) for n in _LENGTHS]
    packed = logits(torch.cat(documents, 1).to(device), torch.cat(positions, 1).to(device))
    pairs = zip(documents, positions, strict=True)
    apart = torch.cat([logits(d.to(device), p.to(device)) for d, p in pairs], dim=1)
    return float((packed - apart).abs().max() / apart.abs().max())


@torch.no_grad()
def _fill(model: torch.nn.Module) -> None:
    """Values large enough that attention is sharp: with 0.02 a leak would hide in the noise."""
    random = torch.Generator().manual_seed(_SEED)
    for parameter in model.parameters():
        scale = 1.0 if parameter.ndim < 2 else parameter.shape[-1] ** -0.5
        values = torch.randn(parameter.shape, generator=random) * scale
        parameter.copy_(values + 1.0 if parameter.ndim < 2 else values * 2.0)
