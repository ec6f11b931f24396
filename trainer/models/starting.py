"""What a model's parameters are before its first step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from trainer.config.sections.model import FolderModel, Model
from trainer.models.build import AnyModel
from trainer.models.init import InitialValues, initial_rules
from trainer.models.language_model import LanguageModel
from trainer.models.weights import Leniency, SafetensorsFolder
from trainer.records.fragment import Fragment

Layout = Sequence[tuple[str, tuple[int, ...]]]


class StartingValues:
    """A FragmentSource: from the folder what it has, by rule what is new."""

    def __init__(self, folder: SafetensorsFolder | None, initial: InitialValues | None) -> None:
        self._folder = folder
        self._initial = initial
        self.new: tuple[str, ...] = () if folder is None else folder.new

    def read(self, fragment: Fragment, out: torch.Tensor) -> None:
        """Raises: ModelError if a file cannot be read."""
        if self._folder is None or fragment.name in self.new:
            assert self._initial is not None
            self._initial.read(fragment, out)
        else:
            self._folder.read(fragment, out)

    @property
    def said(self) -> str:
        """What a user should know: one sentence, or nothing."""
        if not self.new:
            return ""
        return (
            f"{len(self.new)} tensors are new, the folder does not have them: {', '.join(self.new)}"
        )


def starting_values(
    section: Model, model: AnyModel, *, layout: Layout, seed: int
) -> StartingValues:
    """`layout`: what is to be filled (`Engine.layout()`). `model`: any with these parameters.

    Of a pretrained folder the trunk must be there; a head, and a pooler under it, may be new.
    Raises: ModelError by name for anything else that is missing, or has another shape.
    """
    if not isinstance(section, FolderModel) or section.weights == "fresh":
        return StartingValues(None, InitialValues(initial_rules(model), seed))
    leniency = Leniency(grown=vocabulary_tensors(model) if section.vocab_size else frozenset())
    if isinstance(model, LanguageModel):
        return StartingValues(
            SafetensorsFolder(Path(section.path), layout, leniency=leniency), None
        )
    leniency = Leniency(trunk=f"{model.hf.base_model_prefix}.", grown=leniency.grown)
    folder = SafetensorsFolder(Path(section.path), layout, leniency=leniency)
    initial = InitialValues(initial_rules(model), seed) if folder.new else None
    return StartingValues(folder, initial)


def vocabulary_tensors(model: AnyModel) -> frozenset[str]:
    """The tensors with a row for each entry of the vocabulary, by their logical names."""
    size = model.hf.config.vocab_size
    embedding = model.hf.get_input_embeddings()
    head = model.hf.get_output_embeddings()
    kept = {id(p) for m in (embedding, head) if m is not None for p in m.parameters()}
    return frozenset(
        name for name, p in model.named_parameters() if id(p) in kept and _rows(p) == size
    )


def _rows(parameter: torch.nn.Parameter) -> int:
    return int(getattr(parameter, "ds_shape", parameter.shape)[0])
