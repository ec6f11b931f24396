"""Which part of a model is trained, and what is put beside the part that is not."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from trainer.config.sections.base import Section

# Names of matrices, the end of a name or a pattern with *; all, or peft's word all-linear: every
# one in the layers
Targets = Annotated[tuple[str, ...], Field(min_length=1, examples=[("all",)])]
# Names of modules outside the layers that are trained whole (peft's modules_to_save)
Whole = tuple[str, ...]


class NoAdapter(Section):
    """All parameters are trained."""

    kind: Literal["none"] = "none"


class LoraAdapter(Section):
    """Low-rank matrices beside frozen ones (Hu et al. 2021); dora: and their lengths (Liu 2024)."""

    kind: Literal["lora", "dora", "qlora"]
    rank: Annotated[int, Field(ge=1, le=1 << 14, examples=[8])]
    alpha: Annotated[float, Field(gt=0)]
    # what they add is multiplied by alpha / rank; true: by alpha / sqrt(rank) (Kalajdzievski 2023)
    rslora: bool = False
    dropout: Annotated[float, Field(ge=0, lt=1)]
    targets: Targets
    modules_to_save: Whole = ()
    start: str | None = None  # a folder of peft's whose values training goes on from

    @property
    def scale(self) -> float:
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)


class Ia3Adapter(Section):
    """A factor for each key, value and inner activation (IA3, Liu et al. 2022)."""

    kind: Literal["ia3"]
    # as of lora, or auto: keys, values and what the feed-forward's last matrix reads
    targets: Annotated[tuple[str, ...], Field(min_length=1, examples=[("auto",)])]
    modules_to_save: Whole = ()
    start: str | None = None  # as of lora


class BottleneckAdapter(Section):
    """Two small matrices and a gelu after a frozen one, added to it (Houlsby et al. 2019).

    peft 0.21 has none: the module is ours.
    """

    kind: Literal["bottleneck"]
    size: Annotated[int, Field(ge=1, le=1 << 14, examples=[16])]
    # as of lora, or auto: the last matrices of attention and of the feed-forward
    targets: Annotated[tuple[str, ...], Field(min_length=1, examples=[("auto",)])]
    modules_to_save: Whole = ()


class PromptAdapter(Section):
    """Virtual tokens before every row of a decoder: their embeddings (Lester et al. 2021), those
    from a small network (p_tuning, Liu et al. 2021), or each layer's keys and values (prefix, Li
    and Liang 2021).
    """

    kind: Literal["prompt", "p_tuning", "prefix"]
    virtual_tokens: Annotated[int, Field(ge=1, le=1 << 14, examples=[20])]


class FrozenLayers(Section):
    """Parameters that stay as they are."""

    kind: Literal["freeze"]
    # Patterns of parameter names, * for any part: model.layers.0.*
    frozen: Annotated[tuple[str, ...], Field(min_length=1, examples=[("*embed*",)])]


BesideMatrices = LoraAdapter | Ia3Adapter | BottleneckAdapter
Adapter = Annotated[
    NoAdapter | LoraAdapter | Ia3Adapter | BottleneckAdapter | PromptAdapter | FrozenLayers,
    Field(discriminator="kind"),
]
