"""What a model's parameters are before its first step."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from trainer.config.sections.adapters import Ia3Adapter, LoraAdapter
from trainer.config.sections.model import FolderModel, Model
from trainer.models.adapters import STARTING, base_name, is_adapter, is_magnitude, lies_transposed
from trainer.models.encoder import EncoderModel
from trainer.models.init import InitialValues, initial_rules
from trainer.models.language_model import REFERENCE
from trainer.models.peft_folder import PeftFolder
from trainer.models.reward import RewardModel
from trainer.models.weights import Leniency, SafetensorsFolder
from trainer.models.wrappers import AnyModel
from trainer.records.fragment import MASTER, Fragment

_PIECE_ELEMENTS = 4 << 20


class StartingValues:
    """A FragmentSource: from the folder what it has, by rule what is new.

    Names are the model's, with or without adapters: a frozen `base_layer` is the matrix itself, and
    a reference is the model as it starts.
    """

    def __init__(
        self,
        folder: SafetensorsFolder | None,
        initial: InitialValues | None,
        *,
        model: AnyModel,
        adapter: PeftFolder | None = None,
    ) -> None:
        self._folder = folder
        self._initial = initial
        self._adapter = adapter
        self._shapes = dict(base_layout(model))
        self._transposed = lies_transposed(model)
        self.new: tuple[str, ...] = () if folder is None else folder.new

    def read(self, fragment: Fragment, out: torch.Tensor) -> None:
        """Raises: ModelError if a file cannot be read."""
        if self._adapter is not None and self._adapter.has(fragment.name):
            self._adapter.read(fragment, out)
            return
        if fragment.kind == MASTER and is_magnitude(fragment.name):
            out.copy_(self._lengths(fragment)[fragment.start : fragment.stop])
            return
        plain = replace(fragment, name=base_name(fragment.name).removeprefix(REFERENCE))
        is_ours = self._folder is None or plain.name in self.new or is_adapter(plain.name)
        source = self._initial if is_ours else self._folder
        assert source is not None
        source.read(plain, out)

    @property
    def said(self) -> str:
        """What a user should know: one sentence, or nothing."""
        if not self.new:
            return ""
        return (
            f"{len(self.new)} tensors are new, the folder does not have them: {', '.join(self.new)}"
        )

    def _lengths(self, fragment: Fragment) -> torch.Tensor:
        """Of the frozen matrix, for each of its outputs."""
        name = f"{fragment.name.partition('.lora_')[0]}.weight"
        shape = self._shapes[name]
        matrix = torch.empty(math.prod(shape))
        self.read(Fragment(name, MASTER, shape, 0, math.prod(shape)), matrix)
        lengths: torch.Tensor = matrix.view(shape).norm(dim=0 if self._transposed else 1)
        return lengths


def starting_values(
    section: Model, model: AnyModel, *, seed: int, frozen_only: bool = False
) -> StartingValues:
    """Of any parameter of `model`, trained or frozen, by its name.

    `frozen_only`: what is trained will come from a checkpoint, and the adapter folder that the run
    began with may be gone.
    Of a pretrained folder the trunk must be there; a head, and a pooler under it, may be new.
    Raises: ModelError by name for anything else that is missing, or has another shape.
    """
    begun = None if frozen_only else _peft_folder(section, model)
    if not isinstance(section, FolderModel) or section.weights == "fresh":
        every = InitialValues(initial_rules(model), seed)
        return StartingValues(None, every, model=model, adapter=begun)
    grown = vocabulary_tensors(model) if section.vocab_size else frozenset()
    headed = isinstance(model, EncoderModel | RewardModel)
    trunk = f"{model.hf.base_model_prefix}." if headed else None
    leniency = Leniency(trunk=trunk, grown=grown)
    folder = SafetensorsFolder(Path(section.path), base_layout(model), leniency=leniency)
    has_adapter = any(is_adapter(name) for name, _ in model.named_parameters())
    is_needed = bool(folder.new) or has_adapter
    initial = InitialValues(initial_rules(model), seed) if is_needed else None
    return StartingValues(folder, initial, model=model, adapter=begun)


def _peft_folder(section: Model, model: AnyModel) -> PeftFolder | None:
    adapter = section.adapter
    if not isinstance(adapter, LoraAdapter | Ia3Adapter) or adapter.start is None:
        return None
    return PeftFolder(Path(adapter.start), model, adapter)


def keep_frozen_values(model: AnyModel, section: Model, *, seed: int) -> None:
    """Let whoever gives the model storage fill what no checkpoint holds, one after another."""
    if all(p.requires_grad for p in model.parameters()):
        return
    source = starting_values(section, model, seed=seed, frozen_only=True)

    def fill(name: str, parameter: torch.nn.Parameter) -> None:
        fill_parameter(name, parameter, source)

    model.__dict__["fill_frozen"] = fill


def fill_later(model: AnyModel) -> None:
    """Whoever gives the model storage fills all of it alike, what is frozen too."""
    model.__dict__["fill_frozen"] = lambda name, parameter: None


@torch.no_grad()
def fill_parameter(name: str, parameter: torch.nn.Parameter, source: Any) -> None:
    """All of a parameter from a FragmentSource, a few million elements at a time."""
    flat, shape = parameter.data.view(-1), tuple(parameter.shape)
    for start in range(0, flat.numel(), _PIECE_ELEMENTS):
        stop = min(start + _PIECE_ELEMENTS, flat.numel())
        values = torch.empty(stop - start, dtype=torch.float32)
        source.read(Fragment(name, MASTER, shape, start, stop), values)
        flat[start:stop] = values.to(flat.dtype)


def base_layout(model: AnyModel) -> list[tuple[str, tuple[int, ...]]]:
    """Names and whole shapes of the model without adapters, or copies of what it began as."""
    return [
        (base_name(name), tuple(getattr(p, "ds_shape", p.shape)))
        for name, p in model.named_parameters()
        if not is_adapter(name) and not name.startswith(REFERENCE) and not name.endswith(STARTING)
    ]


def vocabulary_tensors(model: AnyModel) -> frozenset[str]:
    """The tensors with a row for each entry of the vocabulary, by their logical names."""
    size = model.hf.config.vocab_size
    embedding = model.hf.get_input_embeddings()
    head = model.hf.get_output_embeddings()
    kept = {id(p) for m in (embedding, head) if m is not None for p in m.parameters()}
    return frozenset(
        base_name(name)
        for name, p in model.named_parameters()
        if id(p) in kept and _rows(p) == size
    )


def _rows(parameter: torch.nn.Parameter) -> int:
    return int(getattr(parameter, "ds_shape", parameter.shape)[0])
