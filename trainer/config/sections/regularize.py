"""What keeps a model from learning its training rows by heart."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from trainer.config.sections.base import Section

Count = Annotated[int, Field(ge=0)]


class EarlyStoppingSection(Section):
    """The best checkpoint is kept, and is what export and the others take when the run ended."""

    patience: Count  # evaluations in a row without a better value; 0: off
    metric: Annotated[str, Field(min_length=1)]  # as evaluations report it, without eval_
    better: Literal["lower", "higher"]
    margin: Annotated[float, Field(ge=0)]  # a value counts as better if it is so by more than this


class EmaSection(Section):
    """An exponential moving average of the weights, beside them in checkpoints."""

    decay: Annotated[float, Field(ge=0, lt=1)]  # of the average, an update; 0: none is kept
    # less at first, (1 + n) / (10 + n) after n updates, so that the start is forgotten
    warmup: bool
    evaluate: bool  # evaluations during training look at the average


class AdversarialSection(Section):
    """Embeddings are moved to where the loss is larger; distances are L2 norms of an example."""

    kind: Literal["none", "fgm", "pgd", "freelb"]
    epsilon: Annotated[float, Field(gt=0)]  # how far at most; fgm: how far
    alpha: Annotated[float, Field(gt=0)]  # length of a step; fgm has one, of epsilon
    steps: Annotated[int, Field(ge=1, le=100)]  # of pgd and freelb


class RegularizeSection(Section):
    early_stopping: EarlyStoppingSection
    ema: EmaSection
    layer_decay: Annotated[float, Field(gt=0, le=1)]  # of the rate, a layer down from the head
    unfreeze_every: Count  # steps until the next layer down is trained too; 0: all from step 1 on
    neftune: Annotated[float, Field(ge=0)]  # alpha of the noise on embeddings; 0: none
    # weight of the divergence of two passes; 0: one pass
    r_drop: Annotated[float, Field(ge=0, examples=[0])]
    adversarial: AdversarialSection
    # share of the layers' weights that are, for a step, those the model started with; 0: none
    mixout: Annotated[float, Field(ge=0, lt=1)] = 0.0
