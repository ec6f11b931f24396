"""A task whose loss is made harder to learn by heart: noise, two passes, or an adversary.

Everything is local to the micro-batch, and a pure function of the seed and of the rows' global
numbers, or of the dropout that the loop seeds for the micro-batch. So an engine sees one loss and
one backward, whatever the stage, the world or the accumulation. Gradients that an adversary needs
are those of what is added to the embeddings: no parameter gets any from them.

Of several passes the last one goes through the engine's wrapper; the others go around it, for
DeepSpeed 0.19 counts the outputs whose backward it is to wait for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from trainer.batch import IGNORED
from trainer.config.sections.regularize import AdversarialSection, RegularizeSection
from trainer.objectives.adversarial import fgm, freelb_start, pgd
from trainer.objectives.neftune import neftune_noise
from trainer.objectives.r_drop import r_drop_loss_sum
from trainer.tasks.base import Task, values_of
from trainer.tasks.embeddings import added, examples_of, inner, inputs_of, numbered, width_of

_EXAMPLES_OF_A_ROW = 1 << 20  # more than there can be: numbers of examples are apart by this


def regularised(task: Task, section: RegularizeSection, *, seed: int, rows: int = 1) -> Task:
    """The task as it is trained; itself if nothing is asked for. `rows`: of a step, all ranks."""
    if section.r_drop:
        task = RDrop(task, alpha=section.r_drop)
    if section.adversarial.kind != "none":
        task = Adversarial(task, section.adversarial, seed=seed)
    if section.neftune:
        task = Neftune(task, alpha=section.neftune, seed=seed)
    if section.mixout:
        task = MixedOut(task, rows=rows)
    return task


class _Trained:
    """Scores are the task's own: nothing here is for evaluations."""

    def __init__(self, task: Task) -> None:
        self._task = task

    def score(self, model: torch.nn.Module, batch: Any) -> dict[str, float]:
        return self._task.score(model, batch)

    def values(self, sums: Mapping[str, float]) -> dict[str, float]:
        return values_of(self._task, sums)


class MixedOut(_Trained):
    """The model's matrices are mixed with those it started with: one mixture a step.

    Samples tell which step it is: all of a step's say the same, on any rank.
    """

    def __init__(self, task: Task, *, rows: int) -> None:
        super().__init__(task)
        self._rows = rows

    def loss_sum(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        first = next(iter(batch.sample_indices), None)
        if first is not None:  # else rows of no weight, which any mixture does for
            # It stays: layers may be computed again in the backward. Evaluations mix nothing.
            inner(model).mixing.step = first // self._rows
        return self._task.loss_sum(model, batch)


class Neftune(_Trained):
    """Uniform noise on the embeddings of each example, +-alpha / sqrt(its tokens x width)."""

    def __init__(self, task: Task, *, alpha: float, seed: int) -> None:
        super().__init__(task)
        self._alpha, self._seed = alpha, seed

    def loss_sum(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        with added(model, self.noise(batch, width=width_of(model))):
            return self._task.loss_sum(model, batch)

    def noise(self, batch: Any, *, width: int) -> torch.Tensor:
        """(R, T, H). A sample's is the same in every world: its number is the run's alone."""
        examples_RT = examples_of(batch)
        positions = examples_RT.shape[1]
        # Padding lies at the end. Positions of a row are drawn as if it were one example, then
        # scaled to the length of their own.
        lengths_R = (examples_RT >= 0).sum(-1).tolist()
        noise_RTH = neftune_noise(
            lengths_R,
            shape_TH=(positions, width),
            alpha=self._alpha,
            seed=self._seed,
            step=0,
            rows=batch.sample_indices,
        ).to(examples_RT.device)
        same_RTT = examples_RT[:, :, None] == examples_RT[:, None, :]
        own_RT = same_RTT.sum(-1)
        whole_R1 = (examples_RT >= 0).sum(-1, keepdim=True)
        return noise_RTH * (whole_R1 / own_RT).sqrt()[..., None]


class RDrop(_Trained):
    """Two passes, which dropout makes differ: the mean of both losses, and alpha times the
    symmetric divergence of what they say.

    Source: Liang et al. 2021 (R-Drop), eq. 4, halved as in its code, so that alpha 0 is the task.
    """

    def __init__(self, task: Task, *, alpha: float) -> None:
        super().__init__(task)
        self._alpha = alpha

    def loss_sum(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        first, second = _Heard(inner(model)), _Heard(model)
        own = (self._task.loss_sum(first, batch) + self._task.loss_sum(second, batch)) / 2
        weights = _weights(batch, first.said)
        apart = r_drop_loss_sum(_flat(first.said), _flat(second.said), weights_N=weights)
        return own + self._alpha * apart


class Adversarial(_Trained):
    """The mean of the loss as it is and of the loss at embeddings moved to where it is larger (FGM:
    one step, PGD: several); or the mean over all the places on the way there (FreeLB)."""

    def __init__(self, task: Task, section: AdversarialSection, *, seed: int) -> None:
        super().__init__(task)
        self._section, self._seed = section, seed

    def loss_sum(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        examples_RT = numbered(examples_of(batch))
        if self._section.kind == "freelb":
            return self._mean_on_the_way(model, batch, examples_RT)
        delta_RTH = self._zero(model, batch)
        for _ in range(1 if self._section.kind == "fgm" else self._section.steps):
            delta_RTH = self._moved(model, batch, delta_RTH, examples_RT)
        clean = self._task.loss_sum(inner(model), batch)
        return (clean + self._loss_at(model, batch, delta_RTH)) / 2

    def _mean_on_the_way(
        self, model: torch.nn.Module, batch: Any, examples_RT: torch.Tensor
    ) -> torch.Tensor:
        """The passes are made twice, once for the way and once for the loss, so that no graph has
        a backward more than once."""
        places = [self._start(batch, width=width_of(model))]
        for _ in range(self._section.steps - 1):
            places.append(self._moved(model, batch, places[-1], examples_RT))
        *first, last = places
        losses = [self._loss_at(inner(model), batch, place) for place in first]
        total = self._loss_at(model, batch, last)
        for loss in losses:
            total = total + loss
        return total / len(places)

    def _moved(
        self,
        model: torch.nn.Module,
        batch: Any,
        delta_RTH: torch.Tensor,
        examples_RT: torch.Tensor,
    ) -> torch.Tensor:
        at_RTH = delta_RTH.detach().requires_grad_()
        loss = self._loss_at(inner(model), batch, at_RTH)
        (gradient_RTH,) = torch.autograd.grad(loss, at_RTH)
        section = self._section
        if section.kind == "fgm":
            return fgm(gradient_RTH, examples_RT, epsilon=section.epsilon)
        return pgd(
            delta_RTH, gradient_RTH, examples_RT, alpha=section.alpha, epsilon=section.epsilon
        )

    def _loss_at(self, model: torch.nn.Module, batch: Any, delta_RTH: torch.Tensor) -> torch.Tensor:
        with added(model, delta_RTH):
            return self._task.loss_sum(model, batch)

    def _zero(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        inputs_RT = inputs_of(batch)
        return torch.zeros(*inputs_RT.shape, width_of(model), device=inputs_RT.device)

    def _start(self, batch: Any, *, width: int) -> torch.Tensor:
        examples_RT = examples_of(batch)
        noise_RTH = torch.zeros(*examples_RT.shape, width, device=examples_RT.device)
        for row, sample in enumerate(batch.sample_indices):
            noise_RTH[row] = freelb_start(
                examples_RT[row : row + 1],
                width=width,
                radius=self._section.epsilon,
                seed=self._seed,
                step=0,
                first=sample * _EXAMPLES_OF_A_ROW,
            )[0]
        return noise_RTH


class _Heard(torch.nn.Module):
    """A model whose answer is kept."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.__dict__["_model"] = model  # not as a part of this one
        self.said: Any = None

    def forward(self, *given: Any, **named: Any) -> Any:
        self.said = self.__dict__["_model"](*given, **named)
        return self.said


def _flat(logits: torch.Tensor) -> torch.Tensor:
    return logits.flatten(0, -2)


def _weights(batch: Any, logits: torch.Tensor) -> torch.Tensor:
    """1 where the answer is a term: an example's, or a position's that has a label; or the label's
    own weight."""
    if logits.dim() == 2:
        weights: torch.Tensor = batch.fields["weights_E"]
        return weights
    if (weights_RT := batch.fields.get("weights_RT")) is not None:
        flat: torch.Tensor = weights_RT.flatten()
        return flat
    labels_RT: torch.Tensor = batch.fields["labels_RT"]
    return (labels_RT != IGNORED).float().flatten()
