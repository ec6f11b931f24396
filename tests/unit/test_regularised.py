"""Losses with noise, with two passes and against an adversary, beside plain PyTorch on the same
rows: single rows, embeddings given to Hugging Face's model, the textbook's lines."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from tests.helpers.configs import config
from trainer.batch import ExampleBatch, TokenBatch
from trainer.config.sections.regularize import AdversarialSection, RegularizeSection
from trainer.dist.draws import Draws
from trainer.errors import ConfigError
from trainer.models.build import build_model
from trainer.models.heads import HeadSpec
from trainer.tasks.causal_lm import CausalLm
from trainer.tasks.classify import Classify
from trainer.tasks.regularised import Neftune, regularised

LENGTHS = [[5, 3], [6]]  # of the examples of each row
CLASSES = [0, 2, 1]
SAMPLES = (17, 4)
WIDTH = 32
SIZE = (
    f"model.hidden_size={WIDTH}",
    "model.intermediate_size=48",
    "model.num_hidden_layers=2",
    "model.num_attention_heads=4",
    "model.max_position_embeddings=64",
)


def model(*, dropout: float = 0.0) -> Any:
    section = config("model=encoder_debug", *SIZE, f"model.dropout={dropout}").model
    head = HeadSpec("sequence", ("a", "b", "c"), "single_label_classification")
    made = build_model(section, vocab_size=64, dtype=torch.float32, head=head)
    if any(p.is_meta for p in made.parameters()):
        made = made.to_empty(device="cpu")
    torch.manual_seed(0)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return made.train()


def batch() -> ExampleBatch:
    torch.manual_seed(1)
    width = 9  # one more than the longest row: padding
    fields = {
        name: torch.zeros(2, width, dtype=torch.long)
        for name in ("inputs_RT", "positions_RT", "documents_RT")
    }
    first = []
    for row, lengths in enumerate(LENGTHS):
        at = 0
        for number, length in enumerate(lengths, 1):
            place = slice(at, at + length)
            fields["inputs_RT"][row, place] = torch.randint(1, 64, (length,))
            fields["positions_RT"][row, place] = torch.arange(length)
            fields["documents_RT"][row, place] = number
            first.append(row * width + at)
            at += length
    fields["first_E"] = torch.tensor(first)
    fields["classes_E"] = torch.tensor(CLASSES)
    fields["weights_E"] = torch.ones(3)
    return ExampleBatch(fields, SAMPLES, terms=3, tokens=14)


def alone(made: Any, moves: dict[int, torch.Tensor]) -> torch.Tensor:
    """The summed loss of the examples, each in a row of its own, its embeddings moved."""
    total = torch.zeros((), dtype=torch.float64)
    for example, ids_T in enumerate(examples()):
        embedded = made.hf.get_input_embeddings()(ids_T[None])
        if example in moves:
            embedded = embedded + moves[example][None]
        logits_1C = made.hf(inputs_embeds=embedded).logits
        total = total + F.cross_entropy(logits_1C, torch.tensor([CLASSES[example]])).double()
    return total


def examples() -> list[torch.Tensor]:
    fields, found = batch().fields, []
    for row, lengths in enumerate(LENGTHS):
        for number in range(1, len(lengths) + 1):
            found.append(fields["inputs_RT"][row][fields["documents_RT"][row] == number])
    return found


def gradients(made: Any, loss: torch.Tensor) -> list[torch.Tensor]:
    made.zero_grad()
    loss.backward()
    return [p.grad.clone() for p in made.parameters() if p.grad is not None]


def task(**given: Any) -> Any:
    off = config().regularize.model_dump()
    section = RegularizeSection.model_validate(off | given)
    return regularised(Classify("single", ("a", "b", "c")), section, seed=3)


def same(ours: torch.Tensor, theirs: torch.Tensor, made: Any) -> None:
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
    for a, b in zip(gradients(made, ours), gradients(made, theirs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-6)


def moved(made: Any, delta: dict[int, torch.Tensor], step: Callable[..., torch.Tensor]) -> Any:
    """One step of the textbook for every example on its own."""
    at = {e: d.clone().requires_grad_() for e, d in delta.items()}
    loss = alone(made, at)
    grads = torch.autograd.grad(loss, list(at.values()))
    return {e: step(delta[e], g) for (e, _), g in zip(at.items(), grads, strict=True)}


def zeros() -> dict[int, torch.Tensor]:
    return {e: torch.zeros(len(ids), WIDTH) for e, ids in enumerate(examples())}


def projected(delta: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    delta = delta + 0.4 * gradient / gradient.norm()
    return delta * min(1.0, 0.7 / delta.norm().item())


def test_off_it_is_the_task_itself() -> None:
    plain = Classify("single", ("a", "b", "c"))
    assert regularised(plain, config().regularize, seed=1) is plain


def test_without_anything_packed_rows_are_single_rows() -> None:
    made = model()
    same(Classify("single", ("a", "b", "c")).loss_sum(made, batch()), alone(made, {}), made)


def test_fgm_is_the_textbooks() -> None:
    made = model()
    section = AdversarialSection(kind="fgm", epsilon=0.7, alpha=0.4, steps=3)
    ours = task(adversarial=section).loss_sum(made, batch())
    far = moved(made, zeros(), lambda d, g: 0.7 * g / g.norm())
    assert alone(made, far) > alone(made, {}) + 0.01  # that is what it is for
    same(ours, (alone(made, {}) + alone(made, far)) / 2, made)


def test_pgd_is_the_textbooks() -> None:
    made, far = model(), zeros()
    section = AdversarialSection(kind="pgd", epsilon=0.7, alpha=0.4, steps=3)
    ours = task(adversarial=section).loss_sum(made, batch())
    for _ in range(3):
        far = moved(made, far, projected)
    same(ours, (alone(made, {}) + alone(made, far)) / 2, made)


def test_freelb_is_the_papers_algorithm() -> None:
    made = model()
    section = AdversarialSection(kind="freelb", epsilon=0.7, alpha=0.4, steps=3)
    ours = task(adversarial=section).loss_sum(made, batch())
    place, example = {}, 0
    for sample, lengths in zip(SAMPLES, LENGTHS, strict=True):
        for number, length in enumerate(lengths):
            drawn = Draws("freelb", 3, 0, (sample << 20) + number).uniforms(length * WIDTH)
            start = (2 * torch.from_numpy(drawn).float() - 1) * 0.7 / math.sqrt(length * WIDTH)
            place[example] = start.view(length, WIDTH)
            example += 1
    losses = []
    for _ in range(3):
        losses.append(alone(made, place))
        place = moved(made, place, projected)
    same(ours, sum(losses) / 3, made)


def test_noise_is_each_examples_own() -> None:
    made, rows = model(), batch()
    ours = task(neftune=5.0).loss_sum(made, rows)
    noise = Neftune(Classify("single", ("a", "b", "c")), alpha=5.0, seed=3).noise(rows, width=WIDTH)
    moves, example = {}, 0
    for row, lengths in enumerate(LENGTHS):
        at = 0
        for length in lengths:
            mine = noise[row, at : at + length]
            bound = 5.0 / math.sqrt(length * WIDTH)
            assert 0.9 * bound < mine.abs().max() <= bound * (1 + 1e-6)
            moves[example], at, example = mine, at + length, example + 1
        assert noise[row, at:].abs().max() == 0
    same(ours, alone(made, moves), made)
    other = ExampleBatch(rows.fields, (18, 4), rows.terms, rows.tokens)
    changed = Neftune(Classify("single", ()), alpha=5.0, seed=3).noise(other, width=WIDTH)
    assert not torch.equal(changed[0], noise[0])
    assert torch.equal(changed[1], noise[1])  # of sample 4 as before


def test_two_passes_are_the_papers() -> None:
    made, rows = model(dropout=0.3), batch()
    torch.manual_seed(5)
    ours = task(r_drop=2.0).loss_sum(made, rows)
    torch.manual_seed(5)
    p, q = (made(rows.fields, want="sequence") for _ in range(2))
    classes = torch.tensor(CLASSES)
    own = (F.cross_entropy(p, classes, reduction="sum")) / 2
    own = own + (F.cross_entropy(q, classes, reduction="sum")) / 2
    one, two = p.log_softmax(-1), q.log_softmax(-1)
    apart = F.kl_div(one, two, log_target=True, reduction="sum") / 2
    apart = apart + F.kl_div(two, one, log_target=True, reduction="sum") / 2
    assert apart.item() > 1e-3
    same(ours, own.double() + 2.0 * apart.double(), made)


def test_inner_passes_leave_no_gradient_in_parameters() -> None:
    made = model()
    section = AdversarialSection(kind="pgd", epsilon=0.7, alpha=0.4, steps=2)
    task(adversarial=section).loss_sum(made, batch())
    assert all(p.grad is None for p in made.parameters())
    assert not made.hf.get_input_embeddings()._forward_hooks


def test_documents_of_text_are_examples() -> None:
    ids = torch.randint(1, 64, (2, 8))
    positions = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4], [4, 5, 0, 1, 2, 3, 4, 5]])
    rows = TokenBatch(ids, ids.roll(-1, 1), positions, (0, 1), terms=16, tokens=16)
    kept = positions.clone()
    noise = Neftune(CausalLm(), alpha=1.0, seed=1).noise(rows, width=64)
    assert torch.equal(rows.positions_RT, kept)
    bounds = [1 / math.sqrt(length * 64) for length in (3, 5, 2, 6)]
    parts = (noise[0, :3], noise[0, 3:], noise[1, :2], noise[1, 2:])
    for part, bound in zip(parts, bounds, strict=True):
        assert 0.9 * bound < part.abs().max() <= bound * (1 + 1e-6)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["regularize.r_drop=1"], "causal_lm has none to compare"),
        (
            ["regularize.neftune=5", "regularize.adversarial.kind=fgm"],
            "take one of them(?s:.*)regularize.neftune=0",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        config(*overrides)
